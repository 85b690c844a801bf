"""The best linear layer for the features of a frozen backbone, from which tuning starts.

A random layer's first gradients would pull pretrained features apart before the layer is of any use (Kumar et al. 2022,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").

Shape suffixes: N frames, D feature channels, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Weights of the squared norm that are tried; the one with the lowest validation loss is taken."""

MAX_ITERATIONS = 100
"""L-BFGS steps for each penalty; each starts where the one before ended."""


def fit_head(head: nn.Linear, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> None:
    """Fit a linear layer in place, by logistic regression on standardised features; the same data give the same layer.

    Args:
        head: layer from D channels to C classes.
        train: features_ND and labels_N to fit.
        val: features_ND and labels_N that choose the penalty.
    """
    features_ND, labels_N = train[0].double(), train[1]
    mean_D, scale_D = features_ND.mean(dim=0), features_ND.std(dim=0).clamp_min(1e-6)
    train_ND, val_ND = ((part.double() - mean_D) / scale_D for part in (features_ND, val[0]))
    weight_CD = torch.zeros_like(head.weight, dtype=torch.float64).requires_grad_()
    bias_C = torch.zeros_like(head.bias, dtype=torch.float64).requires_grad_()
    lowest = math.inf
    for penalty in PENALTIES:
        _minimise(weight_CD, bias_C, train_ND, labels_N, penalty)
        loss = nn.functional.cross_entropy(val_ND @ weight_CD.T + bias_C, val[1]).item()
        if loss < lowest:
            lowest = loss
            _put(head, weight_CD.detach() / scale_D, bias_C.detach(), mean_D)


def _minimise(weight_CD: Tensor, bias_C: Tensor, features_ND: Tensor, labels_N: Tensor, penalty: float) -> None:
    optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_NC = features_ND @ weight_CD.T + bias_C
        value = nn.functional.cross_entropy(logits_NC, labels_N) + penalty / 2 * weight_CD.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


@torch.no_grad()
def _put(head: nn.Linear, weight_CD: Tensor, bias_C: Tensor, mean_D: Tensor) -> None:
    head.weight.copy_(weight_CD)
    head.bias.copy_(bias_C - weight_CD @ mean_D)
