"""ALSTM's loop over the frames on a GPU: the same equations as in `pipeline_lib.models.alstm`, in fewer and larger steps.

Left to autograd a frame takes some thirty kernels, forwards and back, most of which do next to nothing. Here what lies between
two matrix products is one kernel (`pipeline_lib.models.alstm_kernels`), everything is written to where it is needed next, and
the weights' gradients are computed once for all frames.
"""

# B batch, T frames of a clip, I cells, D channels, U units, V width of the scorer, S = D + U

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

CELLS, CHANNELS, WIDTHS, UNITS = 8, 32, 32, 128
"""How much one program of a kernel takes, of each axis; the fastest on an H100 at the article's sizes."""


class Inputs(NamedTuple):
    """What the loop works on, in the order in which autograd sees it. Everything but `features_BTID` can have a gradient."""

    features_BTID: Tensor
    ahead: Tensor
    """The features' half of the scores: TBV if pooled, TBIV if local."""
    state_VU: Tensor
    """W_2."""
    score: Tensor
    """W_3: IV if pooled; if local TBV, one a clip and frame, since dropout is in it."""
    score_bias: Tensor
    """I if pooled, 1 if local."""
    joint_GS: Tensor
    """Both halves of the LSTM side by side, G = 4U."""
    bias_G: Tensor
    h_BU: Tensor
    c_BU: Tensor
    state_factors_TBU: Tensor
    """Dropout of the state on its way to the scorer."""
    hidden_factors_TBV: Tensor | None
    """Dropout before W_3, if pooled."""


def run_loop(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return outputs_TBU, h of every frame, and attention_TBI."""
    outputs_TBU, attention_TBI = _Loop.apply(*inputs)
    return outputs_TBU, attention_TBI


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Any) -> tuple[Tensor, Tensor]:
        steps = Steps(Inputs(*tensors))
        for frame in range(steps.num_frames):
            steps.forward(frame)
        ctx.steps = steps
        # As views: the graph holds on to the buffers, and would be held by them in turn.
        return steps.outputs_TBU.view_as(steps.outputs_TBU), steps.attention_TBI.view_as(steps.attention_TBI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs_TBU: Tensor, dattention_TBI: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.steps.backward(doutputs_TBU.contiguous(), dattention_TBI.contiguous())


class Steps:
    """The buffers of one pass, which backward reads again, and the kernels between them."""

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
        self.c_TBU = new(frames + 1, batch, units)
        self.state_UV = self.inputs.state_VU.t().contiguous()  # a product with few rows is faster so
        self.stacked_TBS[0, :, self.channels :] = inputs.h_BU
        self.c_TBU[0] = inputs.c_BU
        torch.mul(inputs.h_BU, inputs.state_factors_TBU[0], out=self.kept_TBU[0])

    def forward(self, frame: int) -> None:
        """Compute a frame's attention and state from the state before it."""
        kernels, inputs, after = _kernels(), self.inputs, frame + 1
        torch.mm(self.kept_TBU[frame], inputs.state_VU.t(), out=self.product_TBV[frame])
        attention_BI = self.attention_TBI[frame]
        kernels.look[(self.batch, -(-self.channels // CHANNELS))](
            self._score(frame), inputs.features_BTID[:, frame], attention_BI, self.stacked_TBS[frame],
            *self._cell_sizes(), block_I=self._block_cells, block_D=CHANNELS, num_warps=1,
        )  # fmt: skip
        gates_BG = self.stacked_TBS[frame] @ inputs.joint_GS.t()
        kernels.remember[self._grid(self.units)](
            gates_BG, inputs.bias_G, self.c_TBU[frame], self._factors_after(frame), self.activations_TBG[frame],
            self.c_TBU[after], self.outputs_TBU[frame], self.stacked_TBS[after, :, self.channels :], self.kept_TBU[after],
            self.units, self.stacked, block=UNITS,
        )  # fmt: skip

    def _score(self, frame: int) -> Tensor:
        """Return scores_BI from the products of the state."""
        kernels, inputs = _kernels(), self.inputs
        scores_BI = torch.empty_like(self.attention_TBI[frame])
        grid = self.batch, -(-self.num_cells // CELLS)
        sizes = {"num_cells": self.num_cells, "width": self.width, "block_I": CELLS, "block_V": 128}
        ahead, product_BV = inputs.ahead[frame], self.product_TBV[frame]
        if inputs.hidden_factors_TBV is not None:
            factors_BV = inputs.hidden_factors_TBV[frame]
            kernels.score_frame[grid](ahead, product_BV, factors_BV, inputs.score, inputs.score_bias, scores_BI, **sizes)
        else:
            kernels.score_cells[grid](ahead, product_BV, inputs.score[frame], inputs.score_bias, scores_BI, **sizes)
        return scores_BI

    def backward(self, dh_TBU: Tensor, dattention_TBI: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, in their order."""
        kernels, inputs = _kernels(), self.inputs
        dahead = torch.empty_like(inputs.ahead)
        dproduct_TBV = dahead if self.pooled else torch.empty_like(self.product_TBV)  # their sum is what is scored
        dscore = torch.empty_like(inputs.score)
        dgates_TBG, dscores_TBI = torch.empty_like(self.activations_TBG), torch.empty_like(self.attention_TBI)
        dstacked_BS, dkept_BU = torch.zeros_like(self.stacked_TBS[0]), torch.zeros_like(self.kept_TBU[0])
        dc_BU = torch.zeros_like(inputs.c_BU)
        for frame in reversed(range(self.num_frames)):
            after = frame + 1
            kernels.remember_back[self._grid(self.units)](
                dh_TBU[frame], dstacked_BS[:, self.channels :], dkept_BU, self._factors_after(frame), dc_BU,
                self.activations_TBG[frame], self.c_TBU[frame], self.c_TBU[after], dgates_TBG[frame],
                self.units, self.stacked, block=UNITS,
            )  # fmt: skip
            torch.mm(dgates_TBG[frame], inputs.joint_GS, out=dstacked_BS)
            kernels.look_back[(self.batch,)](
                dstacked_BS, dattention_TBI[frame], self.attention_TBI[frame], inputs.features_BTID[:, frame],
                dscores_TBI[frame], *self._cell_sizes(), block_I=self._block_cells, block_D=256, num_warps=16,
            )  # fmt: skip
            self._score_back(frame, dscores_TBI[frame], dahead[frame], dproduct_TBV[frame], dscore)
            torch.mm(dproduct_TBV[frame], self.state_UV.t(), out=dkept_BU)
        if inputs.hidden_factors_TBV is not None:
            kept_TBV = torch.tanh(inputs.ahead + self.product_TBV) * inputs.hidden_factors_TBV
            dscore = dscores_TBI.flatten(0, 1).t() @ kept_TBV.flatten(0, 1)
        dgates_NG = dgates_TBG.flatten(0, 1)
        return (
            None,
            dahead,
            dproduct_TBV.flatten(0, 1).t() @ self.kept_TBU[:-1].flatten(0, 1),
            dscore,
            dscores_TBI.sum(dim=(0, 1)) if self.pooled else dscores_TBI.sum().view(1),
            dgates_NG.t() @ self.stacked_TBS[:-1].flatten(0, 1),
            dgates_NG.sum(dim=0),
            torch.addcmul(dstacked_BS[:, self.channels :], dkept_BU, inputs.state_factors_TBU[0]),
            dc_BU,
            None,
            None,
        )

    def _score_back(self, frame: int, dscores_BI: Tensor, dahead: Tensor, dproduct_BV: Tensor, dscore: Tensor) -> None:
        """Fill the gradients of a frame's features' half and products, and if local of its weights."""
        kernels, inputs = _kernels(), self.inputs
        grid = self.batch, -(-self.width // WIDTHS)
        sizes = {"num_cells": self.num_cells, "width": self.width, "block_I": self._block_cells, "block_V": WIDTHS}
        ahead, product_BV = inputs.ahead[frame], self.product_TBV[frame]
        if inputs.hidden_factors_TBV is not None:
            factors_BV = inputs.hidden_factors_TBV[frame]
            kernels.score_frame_back[grid](dscores_BI, ahead, product_BV, factors_BV, inputs.score, dahead, **sizes)
        else:
            weights_BV = inputs.score[frame]
            kernels.score_cells_back[grid](
                dscores_BI, ahead, product_BV, weights_BV, dahead, dproduct_BV, dscore[frame], **sizes
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
    from pipeline_lib.models import alstm_kernels

    return alstm_kernels


@functools.cache
def is_usable() -> bool:
    """Whether this machine's GPU and Triton make the kernels; tried once."""
    sizes = {"features_BTID": (1, 1, 1, 1), "ahead": (1, 1, 1, 1), "state_VU": (1, 1), "score": (1, 1, 1), "score_bias": (1,)}
    sizes |= {"joint_GS": (4, 2), "bias_G": (4,), "h_BU": (1, 1), "c_BU": (1, 1), "state_factors_TBU": (1, 1, 1)}
    try:
        run_loop(Inputs(**{name: torch.ones(size, device="cuda") for name, size in sizes.items()}, hidden_factors_TBV=None))
    except Exception as error:  # no Triton, no C compiler, a GPU that it does not know: of many types
        logger.info("ALSTM without Triton: %s", error)
        return False
    return True
