"""Features brought to one scale before a model sees them, by a number that travels inside the model.

Feature maps of different backbones differ in scale by orders of magnitude; one learning rate and one initialisation fit all of
them only after that is taken out. It is one number for all channels: what is zero after a ReLU stays zero, and channels
that hardly ever fire are not blown up. Standardising channel by channel did worse (docs/results.md).
"""

# B batch, T frames of a clip, K grid side, D channels

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

SCALE = 5.0
"""The root mean square that features are brought to: about what ImageNet networks' last maps have (SqueezeNet 1.1: 6.4 to 6.8
on three collections). The article's models did equally well from 1 to 12; linear layers learn too slowly at 1."""


class Normalised(nn.Module):
    """A model that sees features times `SCALE` over the training split's root mean square."""

    factor: torch.Tensor

    def __init__(self, network: nn.Module) -> None:
        """Wrap a model; until `measure` is called, features pass unchanged."""
        super().__init__()
        self.network = network
        self.register_buffer("factor", torch.ones(()))

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Take the root mean square over all numbers of all valid frames.

        Args:
            batches: features_BTKKD, valid_frames_B and labels of each.
        """
        squares, count = 0.0, 0
        for features_BTKKD, valid_frames_B, _ in batches:
            frames_T = torch.arange(features_BTKKD.shape[1], device=features_BTKKD.device)
            valid_NKKD = features_BTKKD[frames_T < valid_frames_B[:, None]]
            squares += valid_NKKD.double().square().sum().item()
            count += valid_NKKD.numel()
        if squares > 0:
            self.factor.fill_(SCALE / (squares / count) ** 0.5)

    def forward(self, features_BTKKD: torch.Tensor, valid_frames_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the model returns for features of that scale."""
        return self.network(features_BTKKD * self.factor, valid_frames_B)
