"""ALSTM's loop on a GPU: one or two Triton kernels (`pipeline_lib.networks.alstm_kernels`) between two matrix products."""

# B batch, T frames of a clip, I cells, D channels, U units, V width of the scorer, S = D + U, G = 4U

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from pipeline_lib.networks.alstm_loop import Inputs, Steps, run_loop

logger = logging.getLogger(__name__)

CELLS, CHANNELS, WIDTHS, UNITS = 8, 32, 32, 128
"""How much one program of a kernel takes, of each axis; the fastest on an H100 at the article's sizes."""


class GPUSteps(Steps):
    """The kernels and their grids."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs._replace(ahead=inputs.ahead.contiguous() + inputs.state_bias_V))
        self.kernels = _kernels()

    def look(self, frame: int) -> None:
        """Two kernels: scores; attention and glimpse."""
        self.kernels.look[(self.batch, -(-self.channels // CHANNELS))](
            self._score(frame), self.inputs.features_BTID[:, frame], self.attention_TBI[frame], self.stacked_TBS[frame],
            *self._cell_sizes(), block_I=self._block_cells, block_D=CHANNELS, num_warps=1,
        )  # fmt: skip

    def _score(self, frame: int) -> Tensor:
        """Return scores_BI from the products of the state."""
        inputs = self.inputs
        scores_BI = torch.empty_like(self.attention_TBI[frame])
        grid = self.batch, -(-self.num_cells // CELLS)
        sizes = {"num_cells": self.num_cells, "width": self.width, "block_I": CELLS, "block_V": 128}
        ahead, product_BV = inputs.ahead[frame], self.product_TBV[frame]
        if inputs.hidden_factors_TBV is not None:
            factors_BV = inputs.hidden_factors_TBV[frame]
            self.kernels.score_frame[grid](ahead, product_BV, factors_BV, inputs.score, inputs.score_bias, scores_BI, **sizes)
        else:
            self.kernels.score_cells[grid](ahead, product_BV, inputs.score[frame], inputs.score_bias, scores_BI, **sizes)
        return scores_BI

    def remember(self, frame: int) -> None:
        """One kernel."""
        after = frame + 1
        self.kernels.remember[self._grid(self.units)](
            self.gates_BG, self.inputs.bias_G, self.c_TBU[frame], self._factors_after(frame), self.activations_TBG[frame],
            self.c_TBU[after], self.outputs_TBU[frame], self.stacked_TBS[after, :, self.channels :], self.kept_TBU[after],
            self.units, self.stacked, block=UNITS,
        )  # fmt: skip

    def remember_back(self, frame: int) -> None:
        """One kernel."""
        self.kernels.remember_back[self._grid(self.units)](
            self.dh_TBU[frame], self.dstacked_BS[:, self.channels :], self.dkept_BU, self._factors_after(frame), self.dc_BU,
            self.activations_TBG[frame], self.c_TBU[frame], self.c_TBU[frame + 1], self.dgates_TBG[frame],
            self.units, self.stacked, block=UNITS,
        )  # fmt: skip

    def look_back(self, frame: int) -> None:
        """Two kernels: scores; what they were computed from."""
        inputs = self.inputs
        dscores_BI = self.dscores_TBI[frame]
        self.kernels.look_back[(self.batch,)](
            self.dstacked_BS, self.dattention_TBI[frame], self.attention_TBI[frame], inputs.features_BTID[:, frame],
            dscores_BI, *self._cell_sizes(), block_I=self._block_cells, block_D=256, num_warps=16,
        )  # fmt: skip
        grid = self.batch, -(-self.width // WIDTHS)
        sizes = {"num_cells": self.num_cells, "width": self.width, "block_I": self._block_cells, "block_V": WIDTHS}
        ahead, product_BV, dahead = inputs.ahead[frame], self.product_TBV[frame], self.dahead[frame]
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


@functools.cache
def is_usable() -> bool:
    """Whether this machine's GPU and Triton make the kernels; tried once."""
    sizes = {"features_BTID": (1, 1, 1, 1), "ahead": (1, 1, 1, 1), "state_VU": (1, 1), "state_bias_V": (1,)}
    sizes |= {"score": (1, 1, 1), "score_bias": (1,), "joint_GS": (4, 2), "bias_G": (4,)}
    sizes |= {"h_BU": (1, 1), "c_BU": (1, 1), "state_factors_TBU": (1, 1, 1)}
    tensors = {name: torch.ones(size, device="cuda") for name, size in sizes.items()}
    try:
        run_loop(Inputs(**tensors, hidden_factors_TBV=None), GPUSteps)
    except Exception as error:  # no Triton, no C compiler, a GPU that it does not know: of many types
        logger.info("ALSTM without Triton: %s", error)
        return False
    return True
