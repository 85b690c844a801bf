"""Dropout that is fast on a CPU, and can be drawn for all steps of a loop at once."""

# T frames of a clip

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU it is drawn from uniform numbers, as `bernoulli_` takes four times as long."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Return the input, in training with some of its numbers zero and the others larger."""
        if input.is_cuda or not self.drops:
            return super().forward(input)
        return input * self.factors(input, input.shape)

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
            return functional.dropout(like.new_ones(shape), self.p)
        return (torch.rand(shape, device=like.device) >= self.p).to(like.dtype).div_(1 - self.p)
