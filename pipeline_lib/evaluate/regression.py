"""Multinomial logistic regression on videos for several label sets, with the penalty chosen on the validation split."""

# F label sets, V videos, D channels, C classes, P penalties

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline_lib.training.logistic_regression import fit_classifiers

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for scikit-learn's C, compared by validation log loss; the penalty is 1 / (C x videos)."""

DEFAULT = INVERSE_PENALTIES.index(1e-2)
"""Index of the penalty for label sets without validation videos."""


@dataclass(frozen=True)
class Examples:
    """Input vectors and class indices of videos."""

    input_VD: np.ndarray
    label_V: np.ndarray


@dataclass(frozen=True)
class Regression:
    """Predictions for the test videos of the fit to each label set."""

    probability_FVC: np.ndarray
    inverse_penalty_F: list[float | None]
    """scikit-learn's C; None if all labels are the same and no fit is needed."""


def regress(splits: Mapping[str, Examples], label_FV: np.ndarray, num_classes: int, device: torch.device) -> Regression:
    """Fit every label set and predict the `test` videos. Each row of `label_FV` has the `train` labels, then the `val` ones."""
    train_VD, val_VD, test_VD = (torch.from_numpy(splits[name].input_VD).to(device) for name in ("train", "val", "test"))
    label_FN, label_FM = torch.from_numpy(label_FV).to(device).split([len(train_VD), len(val_VD)], dim=1)
    found = fit_classifiers(
        (train_VD, label_FN),
        (val_VD, label_FM),
        num_classes=num_classes,
        penalty_PF=_penalties(label_FN, num_classes),
        default=DEFAULT,
    )
    is_one_F = (label_FN == label_FN[:, :1]).all(dim=1).tolist()
    chosen_F = zip(is_one_F, found.chosen_F.tolist(), strict=True)
    inverse_F = [None if is_one else INVERSE_PENALTIES[index] for is_one, index in chosen_F]
    return Regression(found.probabilities(test_VD).transpose(1, 2).cpu().numpy(), inverse_F)


def _penalties(label_FN: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return penalty_PF, doubled for two classes: there scikit-learn fits a single weight vector."""
    num_known_F = torch.nn.functional.one_hot(label_FN, num_classes).amax(dim=1).sum(dim=1)
    inverse_P1 = torch.tensor(INVERSE_PENALTIES, dtype=torch.float64, device=label_FN.device)[:, None]
    return torch.where(num_known_F == 2, 2.0, 1.0) / (inverse_P1 * label_FN.shape[1])
