"""Augment training images and clips, so that a backbone learns the action and not the scene.

With few groups per class, a backbone can tell training videos apart by their background alone.

Shape suffixes: N examples (images, or clips: NCTHW), C channels, T frames of a clip, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline_lib.streams.flow.encoding import mirror


def augment(inputs: Tensor, generator: torch.Generator, *, flip: bool, crop: float, colour: float) -> Tensor:
    """Augment each normalised image or clip at random. Disabled transforms (False or 0) leave it bit-identical.

    All frames of a clip, and all channels of a stack of flows, are augmented alike.

    Args:
        inputs: normalised images_NCHW or clips_NCTHW, on any device.
        generator: CPU generator.
        flip: flip horizontally with probability 0.5.
        crop: zoom by 1 - crop to 1 + crop and shift by up to crop / 2 of the side, with reflection padding.
        colour: scale each colour channel by 1 - colour to 1 + colour and shift it by up to `colour` standard deviations.
    """
    if flip:
        inputs = torch.where(_coin(inputs, generator), inputs.flip(-1), inputs)
    if crop:
        inputs = _crop(inputs.flatten(1, -3), generator, crop).view_as(inputs)
    if colour:
        scale, offset = (_uniform(inputs, generator, colour, 3, *[1] * (inputs.ndim - 2)) for _ in range(2))
        inputs = inputs * (1 + scale) + offset
    return inputs


def mirror_flows(flows_NLCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each stack of encoded flows (uint8) with probability 0.5."""
    return torch.where(_coin(flows_NLCHW, generator), mirror(flows_NLCHW), flows_NLCHW)


def _coin(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return True or False for each input with equal probability, (N, 1, ...)."""
    return _uniform(inputs, generator, 1, *[1] * (inputs.ndim - 1)) < 0


def _crop(images_NCHW: Tensor, generator: torch.Generator, limit: float) -> Tensor:
    """Resample a random window of each image; `affine_grid` takes shifts in half sides."""
    zoom_N = 1 + _uniform(images_NCHW, generator, limit)
    shift_x_N, shift_y_N = (_uniform(images_NCHW, generator, limit) for _ in range(2))
    zeros_N = torch.zeros_like(zoom_N)
    window_N23 = torch.stack([zoom_N, zeros_N, shift_x_N, zeros_N, zoom_N, shift_y_N], dim=1).view(-1, 2, 3)
    grid_NHW2 = torch.nn.functional.affine_grid(window_N23, list(images_NCHW.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images_NCHW, grid_NHW2, padding_mode="reflection", align_corners=False)


def _uniform(inputs: Tensor, generator: torch.Generator, limit: float, *shape: int) -> Tensor:
    """Draw numbers between -limit and limit for each input, (N, *shape)."""
    numbers = torch.rand(len(inputs), *shape, generator=generator)
    return ((numbers * 2 - 1) * limit).to(inputs.device)
