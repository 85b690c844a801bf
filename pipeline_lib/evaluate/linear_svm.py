"""Linear SVMs on videos: one class against the rest, with the penalty chosen by cross-validation over groups."""

# V videos, D inputs of a video, C classes, P penalties

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import GroupKFold
from sklearn.svm import LinearSVC

from pipeline_lib.training.linear_svm import LinearSvm

MAX_ITERATIONS = 10_000
"""Maximum number of steps of a fit; they need tens."""


def fit_svm(
    input_VD: np.ndarray,
    label_V: np.ndarray,
    group_V: np.ndarray,
    *,
    inverse_penalties: Sequence[float],
    default: float,
    cv_folds: int,
) -> LinearSvm:
    """Fit a linear SVM with the penalty of the highest accuracy in cross-validation.

    Args:
        input_VD: inputs of the videos.
        label_V: class indices; all C classes occur, and there are two or more.
        group_V: groups of the videos, which cross-validation does not split.
        inverse_penalties: candidates for scikit-learn's C, strongest penalty first, which wins a tie.
        default: C if the videos are too few for cross-validation.
        cv_folds: maximum number of folds.
    """
    num_folds = min(cv_folds, len(np.unique(group_V)))
    correct_P = np.zeros(len(inverse_penalties))
    splits = GroupKFold(num_folds).split(input_VD, label_V, group_V) if num_folds > 1 else ()
    for train, held_out in splits:
        if len(np.unique(label_V[train])) > 1:
            fits = [_fit(input_VD[train], label_V[train], inverse_penalty) for inverse_penalty in inverse_penalties]
            correct_P += [(fit.predict(input_VD[held_out]) == label_V[held_out]).sum() for fit in fits]
    best = inverse_penalties[int(correct_P.argmax())] if correct_P.any() else default
    fit = _fit(input_VD, label_V, best)
    coefficient_CD, intercept_C = fit.coef_, fit.intercept_
    if len(intercept_C) == 1:  # two classes: scikit-learn keeps the second one's
        coefficient_CD, intercept_C = np.vstack([-coefficient_CD, coefficient_CD]), np.append(-intercept_C, intercept_C)
    return LinearSvm(
        inverse_penalty=best,
        coefficients=tuple(map(tuple, coefficient_CD.tolist())),
        intercepts=tuple(intercept_C.tolist()),
    )


def _fit(input_VD: np.ndarray, label_V: np.ndarray, inverse_penalty: float) -> LinearSVC:
    return LinearSVC(C=inverse_penalty, dual=False, max_iter=MAX_ITERATIONS).fit(input_VD, label_V)
