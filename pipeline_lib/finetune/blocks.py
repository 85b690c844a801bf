"""Find the blocks of a backbone, the modules that work at one resolution, by tracing output sizes.

Shape suffixes: N frames or clips, C channels, T frames of a clip, H W pixels or cells.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_lib.backbones.build import PROBE_FRAMES, Backbone, on_meta
from pipeline_lib.backbones.network import TokenNetwork
from pipeline_lib.errors import UserError

PROBE_SIZE = 224
"""Side in pixels of the frame that is traced; fixed, so that blocks do not depend on `image_size`."""

MAX_DOWNSCALED_RATIO = 0.75
"""A block ends where the side shrinks below this ratio; convolutions without padding shrink it less."""


def last_blocks(backbone: Backbone, blocks: int | Literal["all"]) -> list[nn.Module]:
    """Return the modules of the backbone's last blocks, or the whole extractor for all of them.

    Raises:
        UserError: the backbone has fewer blocks.
    """
    found = find_blocks(backbone)
    if blocks == "all" or blocks == len(found):
        return [backbone.extractor]
    if blocks > len(found):
        raise UserError(
            f"finetune.blocks = {blocks}: {backbone.name} has {len(found)} blocks; give 1 to {len(found)}, or `all`"
        )
    return [module for block in found[-blocks:] for module in block]


def find_blocks(backbone: Backbone) -> list[list[nn.Module]]:
    """Return the modules of each block, first to last. Each layer of a transformer is a block.

    A block starts with a convolution, or another layer with a weight matrix, whose output is smaller than that of the previous
    block. Pooling, normalisation and activation belong to the preceding convolution.
    """
    if isinstance(backbone.extractor, TokenNetwork):
        return backbone.extractor.layers()
    blocks: list[list[nn.Module]] = []
    block_side = 0
    for module, side in _sides(backbone):
        has_matrix = any(weight.ndim > 1 for weight in module.parameters())
        if not blocks or (has_matrix and side < MAX_DOWNSCALED_RATIO * block_side):
            blocks.append([])
            block_side = side
        blocks[-1].append(module)
    return blocks


def _sides(backbone: Backbone) -> Iterator[tuple[nn.Module, int]]:
    """Yield the modules in the order of their calls with the side of their output, traced on the meta device."""
    map_ = _probe(backbone)
    for module in _chain(backbone.extractor):
        map_ = on_meta(module, map_)
        yield module, _side(map_)


def _probe(backbone: Backbone) -> Tensor:
    """Return frames_NCHW or clips_NCTHW on the meta device."""
    if backbone.input == "image":
        size = backbone.fixed_size or PROBE_SIZE
        return torch.empty(2, backbone.channels_in, size, size, device="meta")
    frames = len(backbone.frames_of_clip(PROBE_FRAMES))
    return torch.empty(2, backbone.channels_in, frames, backbone.own_size, backbone.own_size, device="meta")


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of nested `nn.Sequential`s in the order of their calls."""
    if type(module).forward is not nn.Sequential.forward:
        yield module
        return
    for child in module.children():
        yield from _chain(child)


def _side(map_: Tensor) -> int:
    """Return the side of square maps in any layout: the size that occurs twice."""
    return statistics.mode(map_.shape[1:])
