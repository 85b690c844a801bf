"""Multinomial logistic regression on videos, for several label sets at once; the validation split chooses the penalty."""

# F label sets, V videos, D channels, C classes, P penalties

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline_lib.training.logistic_regression import fit_classifiers

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""scikit-learn's C, to choose from by the validation split's log-loss; a penalty is 1 / (C x videos)."""

DEFAULT = INVERSE_PENALTIES.index(1e-2)
"""Taken where there is nothing to choose by."""


@dataclass(frozen=True)
class Examples:
    """Some videos, and the indices of their classes."""

    input_VD: np.ndarray
    label_V: np.ndarray


@dataclass(frozen=True)
class Regression:
    """What the fit to each label set makes of the test videos."""

    probability_FVC: np.ndarray
    inverse_penalty_F: list[float | None]
    """scikit-learn's C; None where the labels were all the same, which needs no fit."""


def regress(splits: Mapping[str, Examples], label_FV: np.ndarray, num_classes: int, device: torch.device) -> Regression:
    """Fit every label set (labels of the `train` videos, then of the `val` videos), and predict the `test` videos."""
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
    """Return penalty_PF. As in scikit-learn two classes share one weight vector, which doubles the penalty of two."""
    num_known_F = torch.nn.functional.one_hot(label_FN, num_classes).amax(dim=1).sum(dim=1)
    inverse_P1 = torch.tensor(INVERSE_PENALTIES, dtype=torch.float64, device=label_FN.device)[:, None]
    return torch.where(num_known_F == 2, 2.0, 1.0) / (inverse_P1 * label_FN.shape[1])
