"""ALSTM's recurrence on a GPU as an operator of PyTorch, `har::attention_lstm`, with its gradients written out.

Left to autograd, a frame takes about thirty operations, forwards and back, most of them tiny. Here one or two Triton kernels
(`pipeline_lib.networks.alstm_kernels`) run between two matrix products, and the weights' gradients are computed once, for all
frames. Gates are in the order input, forget, candidate, output.
"""

# B batch, T steps of a clip, I cells, D channels, U units, V width of the scorer, S = D + U, G = 4U

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, library
from torch.autograd.function import once_differentiable

CELLS, CHANNELS, WIDTHS, UNITS = 8, 32, 32, 128
"""How much of each axis one program of a kernel takes; the fastest on an H100 at the article's sizes."""


class Inputs(NamedTuple):
    """Arguments of the operator, in their order. All but the features and the dropout factors can have a gradient."""

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


class Results(NamedTuple):
    """What the operator returns: its two results, and what its backward pass reads."""

    outputs_TBU: Tensor
    """h of every frame."""
    attention_TBI: Tensor
    ahead: Tensor
    """`Inputs.ahead` and the state's bias."""
    stacked_TBS: Tensor
    """Each frame's glimpse and the h before it; one frame more than there are."""
    kept_TBU: Tensor
    """The h before each frame after dropout; one more."""
    product_TBV: Tensor
    """W_2 times that."""
    activations_TBG: Tensor
    c_TBU: Tensor
    """The c before each frame; one more."""


def attention_lstm(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return outputs_TBU, h of every frame, and attention_TBI."""
    outputs_TBU, attention_TBI, *_ = torch.ops.har.attention_lstm(*inputs)
    return outputs_TBU, attention_TBI


class _Loop:
    """The operator's two passes over the frames."""

    def __init__(self, inputs: Inputs, results: Results) -> None:
        assert inputs.features_BTID.stride()[2:] == (inputs.features_BTID.shape[3], 1)
        self.inputs, self.results, self.kernels = inputs, results, _kernels()
        self.pooled = inputs.hidden_factors_TBV is not None
        self.batch, self.num_frames, self.num_cells, self.channels = inputs.features_BTID.shape
        self.width, self.units = inputs.state_VU.shape
        self.stacked = self.channels + self.units

    def forward(self) -> None:
        """Fill the results."""
        inputs, results = self.inputs, self.results
        torch.add(inputs.ahead, inputs.state_bias_V, out=results.ahead)
        results.stacked_TBS[0, :, self.channels :] = inputs.h_BU
        results.stacked_TBS[-1].zero_()
        results.c_TBU[0] = inputs.c_BU
        torch.mul(inputs.h_BU, inputs.state_factors_TBU[0], out=results.kept_TBU[0])
        self.gates_BG = torch.empty_like(results.activations_TBG[0])
        state_UV, joint_SG = inputs.state_VU.t(), inputs.joint_GS.t()
        for frame in range(self.num_frames):
            torch.mm(results.kept_TBU[frame], state_UV, out=results.product_TBV[frame])
            self._look(frame)
            torch.mm(results.stacked_TBS[frame], joint_SG, out=self.gates_BG)
            self._remember(frame)

    def backward(self, dh_TBU: Tensor, dattention_TBI: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the inputs that have one, in their order."""
        inputs, results = self.inputs, self.results
        self.dh_TBU, self.dattention_TBI = dh_TBU, dattention_TBI
        self.dahead, self.dscore = torch.empty_like(results.ahead), torch.empty_like(inputs.score)
        # If pooled, what is scored is their sum.
        self.dproduct_TBV = self.dahead if self.pooled else torch.empty_like(results.product_TBV)
        self.dgates_TBG, self.dscores_TBI = torch.empty_like(results.activations_TBG), torch.empty_like(results.attention_TBI)
        self.dstacked_BS, self.dkept_BU = torch.zeros_like(results.stacked_TBS[0]), torch.zeros_like(results.kept_TBU[0])
        self.dc_BU = torch.zeros_like(results.c_TBU[0])
        state_VU = inputs.state_VU.t().contiguous().t()  # a product with few rows is faster so
        for frame in reversed(range(self.num_frames)):
            self._remember_back(frame)
            torch.mm(self.dgates_TBG[frame], inputs.joint_GS, out=self.dstacked_BS)
            self._look_back(frame)
            torch.mm(self.dproduct_TBV[frame], state_VU, out=self.dkept_BU)
        return self._gradients()

    def _gradients(self) -> tuple[Tensor, ...]:
        """Return the weights' gradients over all frames, and those of the inputs before the first."""
        inputs, results = self.inputs, self.results
        dscores_NI, dproduct_NV, dgates_NG = (
            gradient.flatten(0, 1) for gradient in (self.dscores_TBI, self.dproduct_TBV, self.dgates_TBG)
        )
        if inputs.hidden_factors_TBV is not None:
            kept_TBV = torch.tanh(results.ahead + results.product_TBV) * inputs.hidden_factors_TBV
            self.dscore = dscores_NI.t() @ kept_TBV.flatten(0, 1)
        return (
            self.dahead,
            dproduct_NV.t() @ results.kept_TBU[:-1].flatten(0, 1),
            dproduct_NV.sum(dim=0),
            self.dscore,
            dscores_NI.sum(dim=0) if self.pooled else dscores_NI.sum().view(1),
            dgates_NG.t() @ results.stacked_TBS[:-1].flatten(0, 1),
            dgates_NG.sum(dim=0),
            torch.addcmul(self.dstacked_BS[:, self.channels :], self.dkept_BU, inputs.state_factors_TBU[0]),
            self.dc_BU,
        )

    def _look(self, frame: int) -> None:
        """Compute a frame's attention, and its glimpse into `stacked_TBS`: two kernels."""
        results = self.results
        self.kernels.look[(self.batch, -(-self.channels // CHANNELS))](
            self._score(frame), self.inputs.features_BTID[:, frame], results.attention_TBI[frame], results.stacked_TBS[frame],
            *self._cell_sizes(), block_I=self._block_cells, block_D=CHANNELS, num_warps=1,
        )  # fmt: skip

    def _score(self, frame: int) -> Tensor:
        """Return scores_BI from the products of the state."""
        inputs, results = self.inputs, self.results
        scores_BI = torch.empty_like(results.attention_TBI[frame])
        grid = self.batch, -(-self.num_cells // CELLS)
        sizes = {"num_cells": self.num_cells, "width": self.width, "block_I": CELLS, "block_V": 128}
        ahead, product_BV = results.ahead[frame], results.product_TBV[frame]
        if inputs.hidden_factors_TBV is not None:
            factors_BV = inputs.hidden_factors_TBV[frame]
            self.kernels.score_frame[grid](ahead, product_BV, factors_BV, inputs.score, inputs.score_bias, scores_BI, **sizes)
        else:
            self.kernels.score_cells[grid](ahead, product_BV, inputs.score[frame], inputs.score_bias, scores_BI, **sizes)
        return scores_BI

    def _remember(self, frame: int) -> None:
        """Compute the state after a frame from `gates_BG`, and write it to where the next frame takes it from: one kernel."""
        results, after = self.results, frame + 1
        self.kernels.remember[self._grid(self.units)](
            self.gates_BG, self.inputs.bias_G, results.c_TBU[frame], self._factors_after(frame), results.activations_TBG[frame],
            results.c_TBU[after], results.outputs_TBU[frame], results.stacked_TBS[after, :, self.channels :],
            results.kept_TBU[after], self.units, self.stacked, block=UNITS,
        )  # fmt: skip

    def _remember_back(self, frame: int) -> None:
        """Compute a frame's `dgates_TBG`, and `dc_BU` before it, from `dstacked_BS` and `dkept_BU`: one kernel."""
        results = self.results
        self.kernels.remember_back[self._grid(self.units)](
            self.dh_TBU[frame], self.dstacked_BS[:, self.channels :], self.dkept_BU, self._factors_after(frame), self.dc_BU,
            results.activations_TBG[frame], results.c_TBU[frame], results.c_TBU[frame + 1], self.dgates_TBG[frame],
            self.units, self.stacked, block=UNITS,
        )  # fmt: skip

    def _look_back(self, frame: int) -> None:
        """Compute a frame's `dscores_TBI`, `dahead`, `dproduct_TBV`, and if local `dscore`, from `dstacked_BS`: two kernels."""
        inputs, results = self.inputs, self.results
        dscores_BI = self.dscores_TBI[frame]
        self.kernels.look_back[(self.batch,)](
            self.dstacked_BS, self.dattention_TBI[frame], results.attention_TBI[frame], inputs.features_BTID[:, frame],
            dscores_BI, *self._cell_sizes(), block_I=self._block_cells, block_D=256, num_warps=16,
        )  # fmt: skip
        grid = self.batch, -(-self.width // WIDTHS)
        sizes = {"num_cells": self.num_cells, "width": self.width, "block_I": self._block_cells, "block_V": WIDTHS}
        ahead, product_BV, dahead = results.ahead[frame], results.product_TBV[frame], self.dahead[frame]
        if inputs.hidden_factors_TBV is not None:
            factors_BV = inputs.hidden_factors_TBV[frame]
            self.kernels.score_frame_back[grid](dscores_BI, ahead, product_BV, factors_BV, inputs.score, dahead, **sizes)
        else:
            weights_BV, dproduct_BV, dweights_BV = inputs.score[frame], self.dproduct_TBV[frame], self.dscore[frame]
            self.kernels.score_cells_back[grid](
                dscores_BI, ahead, product_BV, weights_BV, dahead, dproduct_BV, dweights_BV, **sizes
            )

    def _factors_after(self, frame: int) -> Tensor:
        """Return the dropout of the state that a frame leaves; after the last, where it goes nowhere, any."""
        return self.inputs.state_factors_TBU[min(frame + 1, self.num_frames - 1)]

    @property
    def _block_cells(self) -> int:
        """The next power of two, as Triton asks for."""
        return 1 << (self.num_cells - 1).bit_length()

    def _grid(self, size: int) -> tuple[int, int]:
        return self.batch, -(-size // UNITS)

    def _cell_sizes(self) -> tuple[int, ...]:
        return self.inputs.features_BTID.stride(0), self.num_cells, self.channels, self.stacked


@functools.cache
def _kernels() -> Any:
    from pipeline_lib.networks import alstm_kernels

    return alstm_kernels


def _new_results(*arguments: Any) -> Results:
    """Return results to be filled; all that a fake tensor needs."""
    inputs = Inputs(*arguments)
    batch, frames, cells, channels = inputs.features_BTID.shape
    width, units = inputs.state_VU.shape
    new = inputs.h_BU.new_empty
    return Results(
        outputs_TBU=new((frames, batch, units)),
        attention_TBI=new((frames, batch, cells)),
        ahead=new(inputs.ahead.shape),
        stacked_TBS=new((frames + 1, batch, channels + units)),
        kept_TBU=new((frames + 1, batch, units)),
        product_TBV=new((frames, batch, width)),
        activations_TBG=new((frames, batch, 4 * units)),
        c_TBU=new((frames + 1, batch, units)),
    )


def _forward(*arguments: Any) -> Results:
    results = _new_results(*arguments)
    _Loop(Inputs(*arguments), results).forward()
    return results


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, results = _split(arguments[:-2])
    return _Loop(inputs, results).backward(*arguments[-2:])


def _new_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    """Return gradients to be filled, for fake tensors."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[1:10])


def _split(tensors: Any) -> tuple[Inputs, Results]:
    count = len(Inputs._fields)
    return Inputs(*tensors[:count]), Results(*tensors[count:])


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*inputs, *output)


@once_differentiable
def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    results = _split(saved)[1]
    dresults = (
        torch.zeros_like(result) if gradient is None else gradient.contiguous()
        for result, gradient in zip(results[:2], gradients[:2], strict=True)
    )
    return None, *torch.ops.har.attention_lstm_backward(*saved, *dresults), None, None


def _register() -> None:
    """Define both operators by `torch.library`'s functions; `custom_op` would import TorchDynamo at the first call."""
    inputs = ", ".join(f"Tensor{'?' * (name == 'hidden_factors_TBV')} {name}" for name in Inputs._fields)
    saved = ", ".join(f"Tensor saved_{name}" for name in Results._fields)
    results, gradients = (", ".join(["Tensor"] * count) for count in (len(Results._fields), 9))
    forward, backward = "har::attention_lstm", "har::attention_lstm_backward"
    library.define(forward, f"({inputs}) -> ({results})")
    library.define(backward, f"({inputs}, {saved}, Tensor dh_TBU, Tensor dattention_TBI) -> ({gradients})")
    for name, function, fake in ((forward, _forward, _new_results), (backward, _backward, _new_gradients)):
        library.impl(name, ("cpu", "cuda"), function)  # on a CPU, Triton's interpreter
        library.register_fake(name, fake)
    library.register_autograd(forward, _differentiate, setup_context=_save)


_register()
