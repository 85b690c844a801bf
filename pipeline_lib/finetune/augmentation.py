"""Augment training frames, so that a backbone learns the action and not the scene.

With few groups per class, a backbone can tell training frames apart by their background alone.

Shape suffixes: N frames, C colour channels (3), H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def augment(frames_NCHW: Tensor, generator: torch.Generator, *, flip: bool, crop: float, colour: float) -> Tensor:
    """Augment each normalised frame at random. Disabled transforms (False or 0) leave frames bit-identical.

    Args:
        frames_NCHW: normalised frames, on any device.
        generator: CPU generator.
        flip: flip horizontally with probability 0.5.
        crop: zoom by 1 - crop to 1 + crop and shift by up to crop / 2 of the side, with reflection padding.
        colour: scale each colour channel by 1 - colour to 1 + colour and shift it by up to `colour` standard deviations.
    """
    if flip:
        frames_NCHW = _flip(frames_NCHW, generator)
    if crop:
        frames_NCHW = _crop(frames_NCHW, generator, crop)
    if colour:
        scale_NC11, offset_NC11 = (_uniform(frames_NCHW, generator, colour, 3, 1, 1) for _ in range(2))
        frames_NCHW = frames_NCHW * (1 + scale_NC11) + offset_NC11
    return frames_NCHW


def _flip(frames_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    is_mirrored_N111 = _uniform(frames_NCHW, generator, 1, 1, 1, 1) < 0
    return torch.where(is_mirrored_N111, frames_NCHW.flip(-1), frames_NCHW)


def _crop(frames_NCHW: Tensor, generator: torch.Generator, limit: float) -> Tensor:
    """Resample a random window of each frame; `affine_grid` takes shifts in half sides."""
    zoom_N = 1 + _uniform(frames_NCHW, generator, limit)
    shift_x_N, shift_y_N = (_uniform(frames_NCHW, generator, limit) for _ in range(2))
    zeros_N = torch.zeros_like(zoom_N)
    window_N23 = torch.stack([zoom_N, zeros_N, shift_x_N, zeros_N, zoom_N, shift_y_N], dim=1).view(-1, 2, 3)
    grid_NHW2 = torch.nn.functional.affine_grid(window_N23, list(frames_NCHW.shape), align_corners=False)
    return torch.nn.functional.grid_sample(frames_NCHW, grid_NHW2, padding_mode="reflection", align_corners=False)


def _uniform(frames_NCHW: Tensor, generator: torch.Generator, limit: float, *shape: int) -> Tensor:
    """Draw numbers between -limit and limit for each frame, (N, *shape)."""
    numbers = torch.rand(len(frames_NCHW), *shape, generator=generator)
    return ((numbers * 2 - 1) * limit).to(frames_NCHW.device)
