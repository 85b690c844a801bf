"""Multinomial logistic regression whose penalty the validation part chooses."""

# V videos, D channels, C classes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""scikit-learn's C, to choose from by the validation part's log-loss."""

DEFAULT_INVERSE_PENALTY = 1e-2
"""Taken where there is nothing to choose by."""


@dataclass(frozen=True)
class Examples:
    """Some videos, and the indices of their classes."""

    input_VD: np.ndarray
    label_V: np.ndarray


def fit_logistic_regression(train: Examples, val: Examples) -> Pipeline:
    """Return a classifier of standardised inputs; where training knows one class only, one that always says that."""
    if len(np.unique(train.label_V)) == 1:
        return make_pipeline(DummyClassifier()).fit(train.input_VD, train.label_V)
    known_V = np.isin(val.label_V, train.label_V)
    val = Examples(val.input_VD[known_V], val.label_V[known_V])
    if len(val.label_V) == 0:
        return _fit(train, DEFAULT_INVERSE_PENALTY)
    return min((_fit(train, candidate) for candidate in INVERSE_PENALTIES), key=lambda model: _log_loss(model, val))


def inverse_penalty(model: Pipeline) -> float | None:
    """Return scikit-learn's C of a classifier, or None if there was no choice of classes."""
    return getattr(model[-1], "C", None)


def _fit(train: Examples, candidate: float) -> Pipeline:
    regression = LogisticRegression(C=candidate, max_iter=1000)
    return make_pipeline(StandardScaler(), regression).fit(train.input_VD, train.label_V)


def _log_loss(model: Pipeline, val: Examples) -> float:
    column_V = np.searchsorted(model.classes_, val.label_V)
    own_V = np.take_along_axis(model.predict_proba(val.input_VD), column_V[:, None], axis=1)
    return float(-np.log(np.maximum(own_V, np.finfo(np.float64).tiny)).mean())
