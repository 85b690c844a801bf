"""Apply linear SVMs to videos; `pipeline_lib.evaluate.linear_svm` fits them."""

# V videos, D inputs of a video, C classes

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict


class LinearSvm(BaseModel):
    """A fitted linear SVM, one class against the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    inverse_penalty: float
    """scikit-learn's C."""
    coefficients: tuple[tuple[float, ...], ...]
    """One row of D per class."""
    intercepts: tuple[float, ...]

    def decide(self, input_VD: np.ndarray) -> np.ndarray:
        """Return the decision values, (V, C)."""
        decision_VC: np.ndarray = input_VD @ np.array(self.coefficients).T + np.array(self.intercepts)
        return decision_VC


def unit_length(input_VD: np.ndarray) -> np.ndarray:
    """Return the inputs, L2-normalised; zeros stay zeros."""
    length_V1 = np.linalg.norm(input_VD, axis=-1, keepdims=True)
    unit_VD: np.ndarray = input_VD / np.where(length_V1 > 0, length_V1, 1.0)
    return unit_VD
