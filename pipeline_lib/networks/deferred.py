"""Batch the weight gradient of a layer over all steps of a loop.

Autograd computes and sums a weight gradient per step, which is slow. Here the loop uses constant weights and adds an offset to
each product: y_t = W x_t + z_t. The gradient of z_t equals that of y_t. All offsets come from one autograd function, whose
backward receives all of these gradients together, so that dW = sum_t dy_t x_t^T is a single large matrix product (or the
weight gradient of a single large convolution).
"""

# T steps of a clip; the other axes depend on the layer

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

WeightGradient = Callable[[torch.Tensor, torch.Tensor, torch.Size], torch.Tensor]
"""Return the weight gradient from the inputs x_T, the gradients dy_T of the products, and the shape of the weights."""


class Deferred:
    """A layer's weights in a loop, with one gradient computation for all steps; inputs live as long as autograd's graph."""

    def __init__(self, weight: torch.Tensor, offsets_T: torch.Tensor, gradient: WeightGradient) -> None:
        """Prepare a loop with the offsets of all steps (a bias or another summand of the products).

        Under autocast the weights are cast here once.
        """
        weight = weight.to(compute_dtype(weight))
        self.weight = weight.detach()
        self._inputs: list[torch.Tensor] = []
        offsets_T = _Offsets.apply(offsets_T, weight, self._inputs, gradient)
        self._learns = offsets_T.requires_grad
        self._offsets = iter(offsets_T.unbind(0))

    def offset(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next step's offset, to be added to the product of the weights and `x`."""
        if self._learns:
            self._inputs.append(x.detach())  # detached to avoid a reference cycle with autograd's graph
        return next(self._offsets)


class _Offsets(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, offsets_T: torch.Tensor, weight: torch.Tensor, inputs: list[torch.Tensor], gradient: WeightGradient
    ) -> torch.Tensor:
        ctx.inputs, ctx.gradient, ctx.shape, ctx.dtype = inputs, gradient, weight.shape, weight.dtype
        return offsets_T.view_as(offsets_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_T: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dw = None
        if ctx.needs_input_grad[1]:
            dw = ctx.gradient(torch.stack(ctx.inputs).to(ctx.dtype), dy_T.to(ctx.dtype), ctx.shape)
        return dy_T, dw, None, None


def gradient_of_linear(x_TND: torch.Tensor, dy_TNO: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the gradient dw_OD of y = x w^T; if dy has one more axis than x, it is summed over that axis."""
    if dy_TNO.ndim > x_TND.ndim:
        dy_TNO = dy_TNO.sum(dim=-2)
    return dy_TNO.flatten(0, -2).t() @ x_TND.flatten(0, -2)


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products with a tensor: autocast's if enabled, else the tensor's own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
