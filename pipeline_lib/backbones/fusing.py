"""Fuse layers of backbones for faster inference on a GPU, with the same results.

Convolution, bias and ReLU become one cuDNN call, and pooling does not store the positions of maxima. The speed is that of
`torch.compile`, without its time for compilation.
"""

# N frames, D channels, H W cells of a map

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class ConvReLU(nn.Module):
    """A convolution with ReLU in one cuDNN call, computed in the precision of its weights."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, precision: torch.dtype) -> None:
        super().__init__()
        assert not isinstance(convolution.padding, str)
        self.stride, self.padding, self.dilation = convolution.stride, convolution.padding, convolution.dilation
        self.groups = convolution.groups
        weight = convolution.weight.detach().to(precision, memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach().to(precision))

    def forward(self, maps_NDHW: Tensor) -> Tensor:
        """Return relu(W * maps + b)."""
        maps_NDHW = maps_NDHW.to(self.weight.dtype)
        return torch.cudnn_convolution_relu(
            maps_NDHW, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Halve(nn.Module):
    """2 x 2 max pooling with stride 2, equal to `nn.MaxPool2d(2)`."""

    def forward(self, maps_NDHW: Tensor) -> Tensor:
        """Return maps of half the height and width, channels last in memory."""
        height, width = (side // 2 * 2 for side in maps_NDHW.shape[2:])
        even_NDHW = maps_NDHW[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
        return _halve()(even_NDHW)


@functools.cache
def _halve() -> Callable[[Tensor], Tensor]:
    """Return the Triton kernel, or an implementation in PyTorch if Triton cannot compile."""
    try:
        from pipeline_lib.backbones.max_pool_kernel import halve

        halve(torch.zeros(1, 8, 2, 2, device="cuda").contiguous(memory_format=torch.channels_last))
    except Exception as error:  # no Triton, no C compiler, or an unsupported GPU raise errors of many types
        logger.info("pooling without Triton: %s", error)
        return _halve_without_triton
    return halve


def _halve_without_triton(maps_NDHW: Tensor) -> Tensor:
    height, width = (side // 2 for side in maps_NDHW.shape[2:])
    cells = maps_NDHW.permute(0, 2, 3, 1).unflatten(2, (width, 2)).unflatten(1, (height, 2))
    return cells.amax(dim=(2, 4)).permute(0, 3, 1, 2)


def fuse(network: nn.Module, precision: torch.dtype) -> nn.Module:
    """Return a copy of the network with fused layers, for inference on a GPU."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fuse_sequence(module, precision)
    return network


def _fuse_sequence(sequence: nn.Sequential, precision: torch.dtype) -> None:
    for index, child in enumerate(sequence):
        follower = sequence[index + 1] if index + 1 < len(sequence) else None
        if type(child) is nn.Conv2d and _is_plain(child) and isinstance(follower, nn.ReLU):
            sequence[index], sequence[index + 1] = ConvReLU(child, precision), nn.Identity()
        elif type(child) is nn.MaxPool2d and _halves(child):
            sequence[index] = Halve()


def _is_plain(convolution: nn.Conv2d) -> bool:
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


def _halves(pool: nn.MaxPool2d) -> bool:
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    pairs = [size if isinstance(size, tuple) else (size, size) for size in sizes]
    return not pool.ceil_mode and pairs == [(2, 2), (2, 2), (0, 0), (1, 1)]
