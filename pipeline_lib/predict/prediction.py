"""Predictions of a video.

Shape suffixes: T frames of a video, K grid side, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline_lib.subsample import SubsampledVideo
from pipeline_lib.training.voting import Tally, tally

TOP = 5


@dataclass(frozen=True)
class ModelPrediction:
    """One model's prediction of a video."""

    classes: tuple[str, ...]
    probability_TC: np.ndarray
    """Class probabilities of every frame, float32."""
    attention_TKK: np.ndarray | None
    """Attention of every frame, float32; None for a model without attention."""

    @cached_property
    def _tally(self) -> Tally:
        return tally(self.probability_TC[None], np.array([len(self.probability_TC)]))

    @property
    def label(self) -> str:
        """The class that most frames vote for; `predicted` in evaluation."""
        return self.classes[self._tally.predicted[0]]

    @property
    def confidence(self) -> float:
        """Mean probability of `label`."""
        return float(self._tally.confidence[0])

    @property
    def label_by_mean(self) -> str:
        """The class with the largest mean probability; `predicted_by_mean` in evaluation."""
        return self.classes[self._tally.predicted_by_mean[0]]

    @property
    def confidence_by_mean(self) -> float:
        """Mean probability of `label_by_mean`."""
        return float(self._tally.confidence_by_mean[0])

    @property
    def top(self) -> list[tuple[str, float]]:
        """The five classes with the largest mean probabilities, with these."""
        mean_C = self._tally.probability_NC[0] / len(self.probability_TC)
        return [(self.classes[index], float(mean_C[index])) for index in np.argsort(-mean_C, kind="stable")[:TOP]]

    @property
    def frame_labels(self) -> list[str]:
        """The most probable class of every frame."""
        return [self.classes[index] for index in self.probability_TC.argmax(axis=1)]

    @property
    def frame_confidence(self) -> list[float]:
        """Probability of each frame's most probable class."""
        return [float(value) for value in self.probability_TC.max(axis=1)]


@dataclass(frozen=True)
class Prediction:
    """The predictions of all models for a video."""

    fps: float
    """Frame rate of the subsampled video."""
    video: SubsampledVideo
    models: Mapping[str, ModelPrediction]
