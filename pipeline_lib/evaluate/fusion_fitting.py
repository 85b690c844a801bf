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
from sklearn.model_selection import GroupKFold
from sklearn.svm import LinearSVC

from pipeline_lib.params import FusionParams
from pipeline_lib.training.fusion import FittedFusion, LinearSvm, stack_scores

logger = logging.getLogger(__name__)

INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for the SVM's C, strongest penalty first."""
DEFAULT_INVERSE_PENALTY = 0.1
"""The SVM's C if the validation videos are too few for cross-validation."""
MAX_CV_FOLDS = 5
MAX_ITERATIONS = 10_000
"""Maximum number of steps of a fit, of the weights or of an SVM."""
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
    return FittedFusion(method="svm", weights=equal, svm=fit_svm(validation))


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


def fit_svm(validation: VideoScores) -> LinearSvm:
    """Fit a linear SVM, with the penalty of the highest accuracy in cross-validation over groups; a tie is for the stronger."""
    score_VS, label_V = stack_scores(validation.probability_MVC), validation.label_V
    num_folds = min(MAX_CV_FOLDS, len(np.unique(validation.group_V)))
    correct_P = np.zeros(len(INVERSE_PENALTIES))
    splits = GroupKFold(num_folds).split(score_VS, label_V, validation.group_V) if num_folds > 1 else ()
    for train, held_out in splits:
        if len(np.unique(label_V[train])) > 1:
            fits = [_fit(score_VS[train], label_V[train], inverse_penalty) for inverse_penalty in INVERSE_PENALTIES]
            correct_P += [(fit.predict(score_VS[held_out]) == label_V[held_out]).sum() for fit in fits]
    best = INVERSE_PENALTIES[correct_P.argmax()] if correct_P.any() else DEFAULT_INVERSE_PENALTY
    fit = _fit(score_VS, label_V, best)
    coefficient_CS, intercept_C = fit.coef_, fit.intercept_
    if len(intercept_C) == 1:  # two classes: scikit-learn keeps the second one's
        coefficient_CS, intercept_C = np.vstack([-coefficient_CS, coefficient_CS]), np.append(-intercept_C, intercept_C)
    return LinearSvm(
        inverse_penalty=best,
        coefficients=tuple(map(tuple, coefficient_CS.tolist())),
        intercepts=tuple(intercept_C.tolist()),
    )


def _fit(score_VS: np.ndarray, label_V: np.ndarray, inverse_penalty: float) -> LinearSVC:
    return LinearSVC(C=inverse_penalty, dual=False, max_iter=MAX_ITERATIONS).fit(score_VS, label_V)
