"""ALSTM's loop on a CPU: what lies between two matrix products is computed by NumPy, in arrays that are the tensors' memory.

No product of NumPy's is used: its BLAS has threads of its own, which know nothing of PyTorch's.
"""

# B batch, T frames of a clip, I cells, D channels, U units, V width of the scorer, S = D + U, G = 4U

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.networks.alstm_loop import Inputs, Steps


class CPUSteps(Steps):
    """The equations between the products; gates in the order input, forget, candidate, output."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        inputs = self.inputs
        self.hidden = torch.empty_like(inputs.ahead)
        """tanh of the features' half of the scores and the state's."""
        self.tanh_c_TBU = torch.empty_like(self.outputs_TBU)
        self.scores_BI, self.kept_BV = torch.empty_like(self.attention_TBI[0]), torch.empty_like(self.product_TBV[0])
        self.buffer_BU = torch.empty_like(self.outputs_TBU[0])
        # sigmoid(x) = 1/2 + tanh(x / 2) / 2, so that one tanh does for all gates
        self.slope_BG = inputs.bias_G.new_tensor([0.5, 0.5, 1, 0.5]).repeat_interleave(self.units).repeat(self.batch, 1)
        self.bias_BG, self.offset_BG = inputs.bias_G * self.slope_BG, (self.slope_BG != 1) * 0.5
        self.arrays = self._as_arrays()

    def _as_arrays(self) -> SimpleNamespace:
        """Return an array for each tensor, of the same name."""
        tensors = vars(self) | self.inputs._asdict()
        return SimpleNamespace(**{name: it.numpy() for name, it in tensors.items() if isinstance(it, Tensor)})

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return outputs_TBU and attention_TBI; what is not finite shows in the loss, as it does with PyTorch's operations."""
        with np.errstate(all="ignore"):
            return super().forward()

    def backward(self, dh_TBU: Tensor, dattention_TBI: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, in their order."""
        with np.errstate(all="ignore"):
            return super().backward(dh_TBU, dattention_TBI)

    def look(self, frame: int) -> None:
        """Scores, attention, glimpse."""
        a, hidden, product_BV = self.arrays, self.arrays.hidden[frame], self.arrays.product_TBV[frame]
        product_BV += a.state_bias_V
        if self.pooled:
            np.add(a.ahead[frame], product_BV, out=hidden)
            np.tanh(hidden, out=hidden)
            np.multiply(hidden, a.hidden_factors_TBV[frame], out=a.kept_BV)
            torch.addmm(self.inputs.score_bias, self.kept_BV, self.inputs.score.t(), out=self.scores_BI)
        else:
            np.add(a.ahead[frame], product_BV[:, None], out=hidden)
            np.tanh(hidden, out=hidden)
            np.einsum("biv,bv->bi", hidden, a.score[frame], out=a.scores_BI)
            np.add(a.scores_BI, a.score_bias, out=a.scores_BI)
        torch.softmax(self.scores_BI, 1, out=self.attention_TBI[frame])
        glimpse_BD = a.stacked_TBS[frame][:, : self.channels]
        np.einsum("bi,bid->bd", a.attention_TBI[frame], a.features_BTID[:, frame], out=glimpse_BD)

    def remember(self, frame: int) -> None:
        """Gates, c, h."""
        a, after, activations_BG = self.arrays, frame + 1, self.arrays.activations_TBG[frame]
        np.multiply(a.gates_BG, a.slope_BG, out=activations_BG)
        activations_BG += a.bias_BG
        np.tanh(activations_BG, out=activations_BG)
        activations_BG *= a.slope_BG
        activations_BG += a.offset_BG
        i, f, g, o = self._by_gate(activations_BG)
        c_BU, tanh_c_BU, h_BU = a.c_TBU[after], a.tanh_c_TBU[frame], a.outputs_TBU[frame]
        np.multiply(f, a.c_TBU[frame], out=c_BU)
        np.add(c_BU, np.multiply(i, g, out=a.buffer_BU), out=c_BU)
        np.multiply(o, np.tanh(c_BU, out=tanh_c_BU), out=h_BU)
        a.stacked_TBS[after][:, self.channels :] = h_BU
        np.multiply(h_BU, self._factors_after(frame), out=a.kept_TBU[after])

    def start_back(self) -> None:
        """Compute what depends on no gradient for all frames at once."""
        i, f, g, o = self.activations_TBG.unflatten(2, (4, self.units)).unbind(2)
        tanh_c = self.tanh_c_TBU
        self.to_c_TBU = torch.addcmul(o, o * tanh_c, tanh_c, value=-1)
        """Of the gradient of h, how much goes to c."""
        self.to_gates_TB4U = torch.empty_like(self.activations_TBG).unflatten(2, (4, self.units))
        """Of the gradient of c, of h for the output gate, how much goes to what the gates are computed from."""
        to_i, to_f, to_g, to_o = self.to_gates_TB4U.unbind(2)
        torch.mul(g, _slope(i), out=to_i)
        torch.mul(self.c_TBU[:-1], _slope(f), out=to_f)
        torch.addcmul(i, i * g, g, value=-1, out=to_g)
        torch.mul(tanh_c, _slope(o), out=to_o)
        if self.inputs.hidden_factors_TBV is not None:
            self.to_product_TBV = (1 - self.hidden.square()) * self.inputs.hidden_factors_TBV
        self.arrays = self._as_arrays()

    def remember_back(self, frame: int) -> None:
        """Back from h and c to the gates, and to c before."""
        a, dh_BU, dc_BU = self.arrays, self.arrays.buffer_BU, self.arrays.dc_BU
        np.multiply(a.dkept_BU, self._factors_after(frame), out=dh_BU)
        dh_BU += a.dstacked_BS[:, self.channels :]
        dh_BU += a.dh_TBU[frame]
        dc_BU += dh_BU * a.to_c_TBU[frame]
        to_gates_B4U, dgates_B4U = a.to_gates_TB4U[frame], a.dgates_TBG[frame].reshape(self.batch, 4, self.units)
        np.multiply(to_gates_B4U, dc_BU[:, None], out=dgates_B4U)
        np.multiply(to_gates_B4U[:, 3], dh_BU, out=dgates_B4U[:, 3])
        dc_BU *= self._by_gate(a.activations_TBG[frame])[1]

    def look_back(self, frame: int) -> None:
        """Back from the glimpse to the scores, and to what they were computed from."""
        a, attention_BI, dscores_BI = self.arrays, self.arrays.attention_TBI[frame], self.arrays.dscores_TBI[frame]
        hidden, dahead = a.hidden[frame], a.dahead[frame]
        dattention_BI = np.einsum("bid,bd->bi", a.features_BTID[:, frame], a.dstacked_BS[:, : self.channels])
        dattention_BI += a.dattention_TBI[frame]
        dattention_BI -= np.vecdot(attention_BI, dattention_BI)[:, None]
        np.multiply(attention_BI, dattention_BI, out=dscores_BI)
        if self.pooled:
            torch.mm(self.dscores_TBI[frame], self.inputs.score, out=self.dahead[frame])
            dahead *= a.to_product_TBV[frame]
        else:
            weights_BV, dproduct_BV = a.score[frame], a.dproduct_TBV[frame]
            np.einsum("bi,biv->bv", dscores_BI, hidden, out=a.dscore[frame])
            np.multiply(hidden, hidden, out=dahead)
            np.subtract(1, dahead, out=dahead)
            dahead *= dscores_BI[:, :, None]
            dahead *= weights_BV[:, None]
            np.sum(dahead, axis=1, out=dproduct_BV)

    def _factors_after(self, frame: int) -> np.ndarray:
        """Return the dropout of the state that a frame leaves; after the last, where it goes nowhere, any."""
        return self.arrays.state_factors_TBU[min(frame + 1, self.num_frames - 1)]

    def _by_gate(self, activations_BG: np.ndarray) -> np.ndarray:
        return activations_BG.reshape(self.batch, 4, self.units).swapaxes(0, 1)


def _slope(sigmoid: Tensor) -> Tensor:
    """Return the derivative of a sigmoid of that value."""
    return torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)
