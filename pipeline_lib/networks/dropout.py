"""Dropout that is fast on a CPU, can be drawn for all steps of a loop at once, and from a generator of its own."""

# T frames of a clip

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, drawn from `generator`, or else from the device's global one."""

    generator: torch.Generator | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Return the input, in training with some of its numbers zero and the others larger."""
        return input * self.factors(input, input.shape) if self.drops else input

    def steps(self, like: torch.Tensor, shape_T: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return dropout for every step of a loop in turn, all of it drawn here; `shape_T` is that of all steps' factors."""
        if not self.drops:
            return lambda x: x
        factors = iter(self.factors(like, shape_T).unbind(0))
        return lambda x: x * next(factors)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    def draw(self, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return `factors`, or ones where nothing is dropped."""
        return self.factors(like, shape) if self.drops else like.new_ones(shape)

    def factors(self, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return factors of that shape, each 0 or 1 / (1 - p)."""
        if like.is_cuda:
            kept = like.new_empty(shape).bernoulli_(1 - self.p, generator=self.generator)
        else:  # `bernoulli_` takes four times as long here
            kept = (torch.rand(shape, device=like.device, generator=self.generator) >= self.p).to(like.dtype)
        return kept.div_(1 - self.p)


def draw_from(generator: torch.Generator, network: nn.Module) -> None:
    """Let all dropout in a network draw from a generator, of the device that the network is on."""
    for module in network.modules():
        if isinstance(module, Dropout):
            module.generator = generator
