"""Initialise the linear head by linear probing, before the backbone is tuned.

The gradients of a random head would distort pretrained features (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution").

Shape suffixes: N frames, D feature channels, C classes, P penalties.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline_lib.training.logistic_regression import fit_classifiers

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Candidate weights of the squared norm; the one with the lowest validation loss is used."""


@torch.no_grad()
def fit_head(head: nn.Linear, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> None:
    """Fit a linear layer in place by logistic regression on standardised features. The result is deterministic.

    Args:
        head: layer from D channels to C classes.
        train: features_ND and labels_N to fit.
        val: features_ND and labels_N to choose the penalty with.
    """
    penalty_P1 = torch.tensor(PENALTIES, dtype=torch.float64, device=train[0].device)[:, None]
    examples = [(features_ND, labels_N[None]) for features_ND, labels_N in (train, val)]
    found = fit_classifiers(*examples, num_classes=head.out_features, penalty_PF=penalty_P1)
    head.weight.copy_(found.weight_FCD[0])
    head.bias.copy_(found.bias_FC[0])
