"""Dropout that is fast on a CPU, can draw the factors of all steps of a loop at once, and can have its own generator."""

# T steps of a clip

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Dropout(nn.Dropout):
    """`nn.Dropout` with random numbers from `generator`, or from the device's global generator if None."""

    generator: torch.Generator | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Return the input, with dropout in training mode."""
        return input * self.factors(input, input.shape) if self.drops else input

    def steps(self, like: torch.Tensor, shape_T: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return dropout as a function for each step of a loop in order; draws all factors, of shape `shape_T`, now."""
        if not self.drops:
            return lambda x: x
        factors = iter(self.factors(like, shape_T).unbind(0))
        return lambda x: x * next(factors)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    def draw(self, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return `factors`, or ones if nothing is dropped."""
        return self.factors(like, shape) if self.drops else like.new_ones(shape)

    def factors(self, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return random factors of the given shape, each 0 or 1 / (1 - p)."""
        if like.is_cuda:
            kept = like.new_empty(shape).bernoulli_(1 - self.p, generator=self.generator)
        else:  # `bernoulli_` is much slower on a CPU
            kept = (torch.rand(shape, device=like.device, generator=self.generator) >= self.p).to(like.dtype)
        return kept.div_(1 - self.p)


def draw_from(generator: torch.Generator, network: nn.Module) -> None:
    """Make all dropout layers of a network use a generator, which must be on the network's device."""
    for module in network.modules():
        if isinstance(module, Dropout):
            module.generator = generator
