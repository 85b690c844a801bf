"""ALSTM's loop over the frames: the same equations as in `pipeline_lib.networks.alstm`, in fewer and larger steps.

Left to autograd a frame takes some thirty operations, forwards and back, most of which do next to nothing. Here the loop and
its gradients are written down: matrix products, and between them what the device is best at, Triton's kernels on a GPU
(`pipeline_lib.networks.alstm_gpu`), NumPy on a CPU (`pipeline_lib.networks.alstm_cpu`), whose calls cost half of PyTorch's.
Everything is written to where it is needed next, and the weights' gradients are computed once for all frames.
"""

# B batch, T frames of a clip, I cells, D channels, U units, V width of the scorer, S = D + U, G = 4U

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Inputs(NamedTuple):
    """What the loop works on, in the order in which autograd sees it. Everything but `features_BTID` can have a gradient."""

    features_BTID: Tensor
    ahead: Tensor
    """The features' half of the scores: TBV if pooled, TBIV if local."""
    state_VU: Tensor
    """W_2."""
    state_bias_V: Tensor
    score: Tensor
    """W_3: IV if pooled; if local TBV, one a clip and frame, since dropout is in it."""
    score_bias: Tensor
    """I if pooled, 1 if local."""
    joint_GS: Tensor
    """Both halves of the LSTM side by side."""
    bias_G: Tensor
    h_BU: Tensor
    c_BU: Tensor
    state_factors_TBU: Tensor
    """Dropout of the state on its way to the scorer."""
    hidden_factors_TBV: Tensor | None
    """Dropout before W_3, if pooled."""


class Steps(ABC):
    """The buffers of one pass, which backward reads again, and the products; what lies between them is the device's."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = Inputs(*(tensor.detach() if tensor is not None else None for tensor in inputs))  # type: ignore[arg-type]
        features_BTID, (batch, units) = inputs.features_BTID, inputs.h_BU.shape
        assert features_BTID.stride()[2:] == (features_BTID.shape[3], 1)
        self.pooled = inputs.hidden_factors_TBV is not None
        self.num_frames, self.num_cells, self.channels = features_BTID.shape[1:]
        self.batch, self.units, self.width = batch, units, inputs.state_VU.shape[0]
        self.stacked = self.channels + units
        new, frames = features_BTID.new_empty, self.num_frames
        self.outputs_TBU, self.attention_TBI = new(frames, batch, units), new(frames, batch, self.num_cells)
        self.stacked_TBS, self.kept_TBU = new(frames + 1, batch, self.stacked), new(frames + 1, batch, units)
        self.product_TBV, self.activations_TBG = new(frames, batch, self.width), new(frames, batch, 4 * units)
        self.c_TBU, self.gates_BG = new(frames + 1, batch, units), new(batch, 4 * units)
        self.state_UV = self.inputs.state_VU.t().contiguous()  # a product with few rows is faster so
        self.stacked_TBS[0, :, self.channels :] = inputs.h_BU
        self.c_TBU[0] = inputs.c_BU
        torch.mul(inputs.h_BU, inputs.state_factors_TBU[0], out=self.kept_TBU[0])

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return outputs_TBU, h of every frame, and attention_TBI."""
        state_UV, joint_SG = self.inputs.state_VU.t(), self.inputs.joint_GS.t()
        kept, products, stacked = self.kept_TBU.unbind(0), self.product_TBV.unbind(0), self.stacked_TBS.unbind(0)
        for frame in range(self.num_frames):
            torch.mm(kept[frame], state_UV, out=products[frame])
            self.look(frame)
            torch.mm(stacked[frame], joint_SG, out=self.gates_BG)
            self.remember(frame)
        return self.outputs_TBU, self.attention_TBI

    def backward(self, dh_TBU: Tensor, dattention_TBI: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, in their order."""
        inputs = self.inputs
        self.dh_TBU, self.dattention_TBI = dh_TBU, dattention_TBI
        self.dahead, self.dscore = torch.empty_like(inputs.ahead), torch.empty_like(inputs.score)
        self.dproduct_TBV = self.dahead if self.pooled else torch.empty_like(self.product_TBV)  # their sum is what is scored
        self.dgates_TBG, self.dscores_TBI = torch.empty_like(self.activations_TBG), torch.empty_like(self.attention_TBI)
        self.dstacked_BS, self.dkept_BU = torch.zeros_like(self.stacked_TBS[0]), torch.zeros_like(self.kept_TBU[0])
        self.dc_BU = torch.zeros_like(inputs.c_BU)
        self.start_back()
        dgates, dproducts, state_VU = self.dgates_TBG.unbind(0), self.dproduct_TBV.unbind(0), self.state_UV.t()
        for frame in reversed(range(self.num_frames)):
            self.remember_back(frame)
            torch.mm(dgates[frame], inputs.joint_GS, out=self.dstacked_BS)
            self.look_back(frame)
            torch.mm(dproducts[frame], state_VU, out=self.dkept_BU)
        dscores_NI, dproduct_NV, dgates_NG = (
            gradient.flatten(0, 1) for gradient in (self.dscores_TBI, self.dproduct_TBV, self.dgates_TBG)
        )
        if inputs.hidden_factors_TBV is not None:  # the state's bias is in one of the two terms, which is up to the device
            kept_TBV = torch.tanh(inputs.ahead + self.product_TBV) * inputs.hidden_factors_TBV
            self.dscore = dscores_NI.t() @ kept_TBV.flatten(0, 1)
        return (
            None,
            self.dahead,
            dproduct_NV.t() @ self.kept_TBU[:-1].flatten(0, 1),
            dproduct_NV.sum(dim=0),
            self.dscore,
            dscores_NI.sum(dim=0) if self.pooled else dscores_NI.sum().view(1),
            dgates_NG.t() @ self.stacked_TBS[:-1].flatten(0, 1),
            dgates_NG.sum(dim=0),
            torch.addcmul(self.dstacked_BS[:, self.channels :], self.dkept_BU, inputs.state_factors_TBU[0]),
            self.dc_BU,
            None,
            None,
        )

    @abstractmethod
    def look(self, frame: int) -> None:
        """Compute a frame's attention, and its glimpse into `stacked_TBS`, from its `product_TBV`."""

    @abstractmethod
    def remember(self, frame: int) -> None:
        """Compute a frame's state, and write it to where the next frame takes it from, from `gates_BG`."""

    def start_back(self) -> None:  # noqa: B027, most have nothing to do
        """Get ready for the gradients."""

    @abstractmethod
    def remember_back(self, frame: int) -> None:
        """Compute a frame's `dgates_TBG`, and what comes before it of `dc_BU`, from `dstacked_BS` and `dkept_BU`."""

    @abstractmethod
    def look_back(self, frame: int) -> None:
        """Compute a frame's `dscores_TBI`, `dahead`, `dproduct_TBV`, and if local `dscore`, from `dstacked_BS`."""


def run_loop(inputs: Inputs, steps: type[Steps]) -> tuple[Tensor, Tensor]:
    """Return outputs_TBU, h of every frame, and attention_TBI, computed by the steps of the inputs' device."""
    outputs_TBU, attention_TBI = _Loop.apply(steps, *inputs)
    return outputs_TBU, attention_TBI


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make_steps: type[Steps], *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.steps = make_steps(Inputs(*tensors))
        outputs_TBU, attention_TBI = ctx.steps.forward()
        # As views: the graph holds on to the buffers, and would be held by them in turn.
        return outputs_TBU.view_as(outputs_TBU), attention_TBI.view_as(attention_TBI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs_TBU: Tensor, dattention_TBI: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.steps.backward(doutputs_TBU.contiguous(), dattention_TBI.contiguous())
