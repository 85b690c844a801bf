"""Fit a score fusion on the validation split.

- `weights` maximise the likelihood of the validation videos' classes.
- `svm` is one classifier against the rest for each class, with the penalty chosen by cross-validation over groups.

Only validation scores are fitted: those of training videos are overconfident, and test scores are what is reported. The
members' checkpoints were chosen on the same validation videos, so these scores are slightly optimistic too, for all members
alike. If a class has no validation video, an SVM could never predict it, so `svm` falls back to the mean and says so.
"""

# M members, V videos, C classes, S = M * C stacked scores, P penalties

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from pipeline_lib.evaluate.linear_svm import fit_svm
from pipeline_lib.params import FusionParams
from pipeline_lib.training.fusion import FittedFusion, stack_scores

logger = logging.getLogger(__name__)

INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for the SVM's C, strongest penalty first."""
DEFAULT_INVERSE_PENALTY = 0.1
"""The SVM's C if the validation videos are too few for cross-validation."""
MAX_CV_FOLDS = 5
MAX_ITERATIONS = 10_000
"""Maximum number of steps of the fit of weights."""
TOLERANCE = 1e-9
"""Change of a weight at which its fit ends."""
SMALLEST = 1e-12
"""Lower bound of probabilities in the likelihood."""


@dataclass(frozen=True)
class VideoScores:
    """Members' mean probabilities of labelled videos."""

    probability_MVC: np.ndarray
    label_V: np.ndarray
    """Class indices."""
    group_V: np.ndarray


def fit_fusion(params: FusionParams, validation: VideoScores | None) -> FittedFusion:
    """Fit a fusion to validation videos, as far as its method has something to fit."""
    equal = (1 / len(params.members),) * len(params.members)
    if params.weights:
        total = sum(params.weights)
        return FittedFusion(method="weights", weights=tuple(weight / total for weight in params.weights))
    if params.method == "mean":
        return FittedFusion(method="mean", weights=equal)
    if note := _explain_fallback(params.method, validation):
        logger.warning("%s of %s: %s; using the mean", params.method, ", ".join(params.members), note)
        return FittedFusion(method="mean", weights=equal, note=note)
    assert validation is not None
    if params.method == "weights":
        return FittedFusion(method="weights", weights=tuple(fit_weights(validation).tolist()))
    svm = fit_svm(
        stack_scores(validation.probability_MVC),
        validation.label_V,
        validation.group_V,
        inverse_penalties=INVERSE_PENALTIES,
        default=DEFAULT_INVERSE_PENALTY,
        cv_folds=MAX_CV_FOLDS,
    )
    return FittedFusion(method="svm", weights=equal, svm=svm)


def _explain_fallback(method: str, validation: VideoScores | None) -> str | None:
    if validation is None:
        return "there are no validation videos to fit it to"
    num_classes = validation.probability_MVC.shape[2]
    num_missing = num_classes - len(np.unique(validation.label_V))
    return f"{num_missing} of {num_classes} classes have no validation video" if method == "svm" and num_missing else None


def fit_weights(validation: VideoScores) -> np.ndarray:
    """Return weight_M, which sums to 1 and maximises the likelihood of the videos' classes, by expectation maximisation.

    The weighted mean is a mixture of the members. Its log likelihood is concave in the weights, so there is one maximum.
    """
    label_1V1 = validation.label_V[None, :, None]
    true_MV = np.maximum(np.take_along_axis(validation.probability_MVC, label_1V1, axis=2)[:, :, 0], SMALLEST)
    weight_M = np.full(len(true_MV), 1 / len(true_MV))
    for _ in range(MAX_ITERATIONS):
        share_MV = weight_M[:, None] * true_MV
        before_M, weight_M = weight_M, (share_MV / share_MV.sum(axis=0)).mean(axis=1)
        if np.abs(weight_M - before_M).max() < TOLERANCE:
            break
    return weight_M
