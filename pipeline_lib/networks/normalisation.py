"""Normalise the scale of features with a single factor for each stream, which is stored in the model.

Feature maps of different backbones differ in scale by orders of magnitude. Normalised, they share learning rate and
initialisation. A single factor for all channels keeps zeros after a ReLU, and does not amplify channels that rarely fire.
Standardisation per channel performed worse (docs/results.md).
"""

# B batch, T steps of a clip, K grid side, D channels

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from pipeline_lib.networks.outputs import ModelOutputs

SCALE = 5.0
"""Root mean square of normalised features, similar to that of the last feature maps of ImageNet networks."""


class Normalised(nn.Module):
    """A model on features multiplied by `SCALE` / (root mean square of the training features)."""

    factor: torch.Tensor

    def __init__(self, network: nn.Module, channels: Sequence[int] = ()) -> None:
        """Wrap a model; features are unchanged until `measure` is called. Each of several streams has a factor of its own."""
        super().__init__()
        self.network = network
        self._channels = tuple(channels) if len(channels) > 1 else None
        self.register_buffer("factor", torch.ones(sum(channels) if self._channels else ()))

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Set the factor from the root mean square of the features of all valid steps.

        Args:
            batches: features_BTKKD, valid_steps_B and labels of each batch.
        """
        sums, counts = [0.0] * self._num_parts, [0] * self._num_parts
        for features_BTKKD, valid_steps_B, _ in batches:
            steps_T = torch.arange(features_BTKKD.shape[1], device=features_BTKKD.device)
            valid_NKKD = features_BTKKD[steps_T < valid_steps_B[:, None]]
            for index, part in enumerate(self._parts(valid_NKKD)):
                sums[index] += part.double().square().sum().item()
                counts[index] += part.numel()
        for factor, total, count in zip(self._parts(self.factor), sums, counts, strict=True):
            if total > 0:
                factor.fill_(SCALE / (total / count) ** 0.5)

    @property
    def _num_parts(self) -> int:
        return len(self._channels) if self._channels else 1

    def _parts(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split the last axis into the streams' channels."""
        return tensor.split(self._channels, dim=-1) if self._channels else (tensor,)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
        """Return the model's outputs for the normalised features."""
        outputs: ModelOutputs = self.network(features_BTKKD * self.factor, valid_steps_B)
        return outputs
