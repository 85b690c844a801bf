"""From frames to clips and videos: the mode of the frames' predictions, as the article has it, and their mean probability.

A tie of votes goes to the class with the larger sum of probabilities over all valid frames, voters or not; equal sums, which
floating point hardly ever gives, go to the class that comes first.
"""

# N clips or videos, T frames of a clip, C classes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tally:
    """What the valid frames of each clip or video add up to."""

    votes_NC: np.ndarray
    """Frames whose most probable class this is."""
    probability_NC: np.ndarray
    """Sum of the frames' probabilities, float64."""

    @property
    def predicted(self) -> np.ndarray:
        """Class index that wins the vote (the mode), one a clip or video."""
        leads_NC = self.votes_NC == self.votes_NC.max(axis=1, keepdims=True)
        winner_N: np.ndarray = np.where(leads_NC, self.probability_NC, -1.0).argmax(axis=1)
        return winner_N

    @property
    def confidence(self) -> np.ndarray:
        """Mean probability, over the valid frames, of the class that wins the vote."""
        return self._mean_probability(self.predicted)

    @property
    def predicted_by_mean(self) -> np.ndarray:
        """Class index of the largest mean probability over the valid frames, one a clip or video."""
        best_N: np.ndarray = self.probability_NC.argmax(axis=1)
        return best_N

    @property
    def confidence_by_mean(self) -> np.ndarray:
        """That largest mean probability."""
        return self._mean_probability(self.predicted_by_mean)

    def among_best(self, label_N: np.ndarray, best: int) -> np.ndarray:
        """Return whether each label is among its row's `best` classes by mean probability; a tie counts against it."""
        own_N1 = np.take_along_axis(self.probability_NC, label_N[:, None], axis=1)
        among_N: np.ndarray = (self.probability_NC >= own_N1).sum(axis=1) <= best
        return among_N

    def pool(self, group_N: np.ndarray, num_groups: int) -> Tally:
        """Add up clips to videos: `group_N` gives each clip's video index. A long video has more votes, as it has frames."""
        votes = np.zeros((num_groups, self.votes_NC.shape[1]), dtype=self.votes_NC.dtype)
        probability = np.zeros(votes.shape)
        np.add.at(votes, group_N, self.votes_NC)
        np.add.at(probability, group_N, self.probability_NC)
        return Tally(votes, probability)

    def _mean_probability(self, class_N: np.ndarray) -> np.ndarray:
        chosen_N: np.ndarray = np.take_along_axis(self.probability_NC, class_N[:, None], axis=1)[:, 0]
        mean_N: np.ndarray = chosen_N / self.votes_NC.sum(axis=1)
        return mean_N


def tally(probability_NTC: np.ndarray, valid_frames_N: np.ndarray) -> Tally:
    """Count the votes of the valid frames of each clip."""
    num_frames, num_classes = probability_NTC.shape[1:]
    valid_NT1 = valid_mask(valid_frames_N, num_frames)[:, :, None]
    votes_NTC = probability_NTC.argmax(axis=2)[:, :, None] == np.arange(num_classes)
    return Tally(
        votes_NC=(votes_NTC & valid_NT1).sum(axis=1),
        probability_NC=np.where(valid_NT1, probability_NTC.astype(np.float64), 0.0).sum(axis=1),
    )


def valid_mask(valid_frames_N: np.ndarray, num_frames: int) -> np.ndarray:
    """Return mask_NT: true for real frames, false for padding."""
    return np.arange(num_frames) < np.asarray(valid_frames_N)[:, None]
