"""Aggregate frame predictions to clips and videos: majority vote (the mode, as in the article) and mean probability.

A tied vote goes to the class with the larger sum of probabilities over the frames that vote, and equal sums to the first class.

Frames are never weighted by a model's importance over time. Where a model has it, its logits are of the whole clip (Yao et
al. 2015, see `pipeline_lib.networks.temporal_attention`): importance has weighed the steps inside the model. All frames of the
clip have the same probabilities, whose mean is the same with any weights.
"""

# N clips or videos, T frames of a clip, C classes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tally:
    """Votes and summed probabilities of the frames of each clip or video that vote: the valid ones, or the last of them."""

    votes_NC: np.ndarray
    """Number of frames that predict the class."""
    probability_NC: np.ndarray
    """Sum of the frames' probabilities, float64."""

    @property
    def predicted(self) -> np.ndarray:
        """Class index that wins the vote, one per clip or video."""
        leads_NC = self.votes_NC == self.votes_NC.max(axis=1, keepdims=True)
        winner_N: np.ndarray = np.where(leads_NC, self.probability_NC, -1.0).argmax(axis=1)
        return winner_N

    @property
    def confidence(self) -> np.ndarray:
        """Mean probability over the voting frames of the class that wins the vote."""
        return self._mean_probability(self.predicted)

    @property
    def predicted_by_mean(self) -> np.ndarray:
        """Class index of the largest mean probability over the voting frames, one per clip or video."""
        best_N: np.ndarray = self.probability_NC.argmax(axis=1)
        return best_N

    @property
    def confidence_by_mean(self) -> np.ndarray:
        """The largest mean probability over the voting frames."""
        return self._mean_probability(self.predicted_by_mean)

    def among_best(self, label_N: np.ndarray, best: int) -> np.ndarray:
        """Return whether each label is among its row's top `best` classes by mean probability; ties count against it."""
        own_N1 = np.take_along_axis(self.probability_NC, label_N[:, None], axis=1)
        among_N: np.ndarray = (self.probability_NC >= own_N1).sum(axis=1) <= best
        return among_N

    def pool(self, group_N: np.ndarray, num_groups: int) -> Tally:
        """Sum clips into videos, where `group_N` is the video index of each clip. Every voting frame counts once."""
        votes = np.zeros((num_groups, self.votes_NC.shape[1]), dtype=self.votes_NC.dtype)
        probability = np.zeros(votes.shape)
        np.add.at(votes, group_N, self.votes_NC)
        np.add.at(probability, group_N, self.probability_NC)
        return Tally(votes, probability)

    def _mean_probability(self, class_N: np.ndarray) -> np.ndarray:
        chosen_N: np.ndarray = np.take_along_axis(self.probability_NC, class_N[:, None], axis=1)[:, 0]
        mean_N: np.ndarray = chosen_N / self.votes_NC.sum(axis=1)
        return mean_N


def tally(probability_NTC: np.ndarray, valid_frames_N: np.ndarray, last: int | None = None) -> Tally:
    """Count the votes of the valid frames of each clip, or of only the `last` of them."""
    num_frames, num_classes = probability_NTC.shape[1:]
    valid_NT = valid_mask(valid_frames_N, num_frames)
    if last is not None:
        valid_NT &= ~valid_mask(np.asarray(valid_frames_N) - last, num_frames)
    valid_NT1 = valid_NT[:, :, None]
    votes_NTC = probability_NTC.argmax(axis=2)[:, :, None] == np.arange(num_classes)
    return Tally(
        votes_NC=(votes_NTC & valid_NT1).sum(axis=1),
        probability_NC=np.where(valid_NT1, probability_NTC.astype(np.float64), 0.0).sum(axis=1),
    )


def valid_mask(valid_frames_N: np.ndarray, num_frames: int) -> np.ndarray:
    """Return mask_NT: True for real frames, False for padding."""
    return np.arange(num_frames) < np.asarray(valid_frames_N)[:, None]
