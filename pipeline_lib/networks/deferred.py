"""Weights that a loop over frames uses in every step, and whose gradient is computed once, for all steps together.

Autograd computes a gradient of the weights in every step and adds the thirty up, which takes longer than the steps' own
gradients. Here the loop sees the weights as constants and adds an offset to each product, y_t = W x_t + z_t. The gradient of
z_t is that of y_t, and as the offsets of all steps come out of one function, its backward sees all of them at once:
dW = sum_t dy_t x_t^T is then one product of two large matrices, or the weight gradient of one large convolution.
"""

# T frames of a clip; what axes follow depends on the layer

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

WeightGradient = Callable[[torch.Tensor, torch.Tensor, torch.Size], torch.Tensor]
"""Takes the inputs x_T, the products' gradients dy_T and the weights' shape."""


class Deferred:
    """The weights of one layer during a loop; the inputs are kept as long as autograd's graph, which lets go of them."""

    def __init__(self, weight: torch.Tensor, offsets_T: torch.Tensor, gradient: WeightGradient) -> None:
        """Take the weights, the offsets of all steps (a bias, or whatever else the products are added to) and their gradient.

        Under autocast the weights are cast here, once.
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
            self._inputs.append(x.detach())  # with its history it would hold on to the graph that holds on to it
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
    """Return the gradient dw_OD of y = x w^T, or of y_n = x w^T for several n if dy has one more axis."""
    if dy_TNO.ndim > x_TND.ndim:
        dy_TNO = dy_TNO.sum(dim=-2)
    return dy_TNO.flatten(0, -2).t() @ x_TND.flatten(0, -2)


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the type that matrix products of a tensor are computed in: autocast's, or its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
