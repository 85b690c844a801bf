"""A Triton kernel for 2 x 2 max pooling. Import it only where Triton is installed (Linux with a GPU)."""

# Triton compiles the kernels' source, which type checkers do not understand.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202

# N frames, D channels, H W cells of a map

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def _kernel(maps, pooled, num_pooled, half_width, channels: tl.constexpr, block: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < num_pooled
    channel, cell = index % channels, index // channels
    row, column = cell // half_width, cell % half_width  # rows are numbered over all frames
    width = 2 * half_width
    corner = maps + (2 * row * width + 2 * column) * channels + channel
    above = _larger(tl.load(corner, mask=inside), tl.load(corner + channels, mask=inside))
    corner += width * channels
    below = _larger(tl.load(corner, mask=inside), tl.load(corner + channels, mask=inside))
    tl.store(pooled + index, _larger(above, below), mask=inside)


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)  # so that the check for finite features sees nan


def halve(maps_NDHW: Tensor) -> Tensor:
    """Return 2 x 2 max pooling; height and width must be even, and input and output are channels last in memory."""
    num_frames, channels, height, width = maps_NDHW.shape
    shape = (num_frames, channels, height // 2, width // 2)
    pooled_NDHW = torch.empty(shape, dtype=maps_NDHW.dtype, device=maps_NDHW.device, memory_format=torch.channels_last)
    blocks = triton.cdiv(pooled_NDHW.numel(), BLOCK)
    _kernel[(blocks,)](maps_NDHW, pooled_NDHW, pooled_NDHW.numel(), width // 2, channels, BLOCK, num_warps=8)
    return pooled_NDHW
