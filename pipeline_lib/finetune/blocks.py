"""The blocks of a backbone: what works at one resolution, found by running it, without a table of names.

Shape suffixes: N frames, C channels, H W pixels or cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_lib.backbones.build import Backbone, PatchTokens
from pipeline_lib.errors import UserError

USUAL_SIZE = 224
"""Side of the frame that blocks are found with, so that they do not depend on the size of the frames in use."""

SAME_RESOLUTION = 0.75
"""Convolutions without padding take a few pixels off a map; a map this much smaller is of the next resolution."""


def last_blocks(backbone: Backbone, blocks: int | Literal["all"]) -> list[nn.Module]:
    """Return the modules of the backbone's last blocks; of all of them, the whole extractor.

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
    """Return the modules of each block, first to last. Every layer of a vision transformer's encoder is a block.

    A block begins with a convolution (or another layer with a matrix of weights) whose output is smaller than the block
    before; pooling, normalisation and activation belong to the convolution before them.
    """
    if isinstance(backbone.extractor, PatchTokens):
        return _layers(backbone.extractor)
    blocks: list[list[nn.Module]] = []
    side_of_block = 0
    for module, side in _sides(backbone):
        has_matrix = any(weight.ndim > 1 for weight in module.parameters())
        if not blocks or (has_matrix and side < SAME_RESOLUTION * side_of_block):
            blocks.append([])
            side_of_block = side
        blocks[-1].append(module)
    return blocks


def _layers(extractor: PatchTokens) -> list[list[nn.Module]]:
    layers: list[list[nn.Module]] = [[layer] for layer in extractor.encoder.layers]
    layers[0].insert(0, extractor.conv_proj)
    layers[-1].append(extractor.encoder.ln)
    return layers


def _sides(backbone: Backbone) -> Iterator[tuple[nn.Module, int]]:
    """Yield the modules that follow one another, each with the side of its output for a square frame; computes nothing."""
    size = backbone.fixed_size or USUAL_SIZE
    map_NCHW = torch.empty(2, 3, size, size, device="meta")
    for module in _chain(backbone.extractor):
        weights = {name: weight.to("meta") for name, weight in module.state_dict().items()}
        map_NCHW = torch.func.functional_call(module, weights, (map_NCHW,))
        yield module, _side(map_NCHW)


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a nest of `nn.Sequential` calls one after the other."""
    if type(module).forward is not nn.Sequential.forward:
        yield module
        return
    for child in module.children():
        yield from _chain(child)


def _side(map_NCHW: Tensor) -> int:
    """Return the side of square maps, wherever the channels stand: two of three sizes are it, so the middle one is."""
    return sorted(map_NCHW.shape[1:])[1]
