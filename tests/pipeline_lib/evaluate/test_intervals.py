"""Intervals over groups, by hand and against simulated test splits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from pipeline_lib.datasets.hmdb51 import Hmdb51Splits
from pipeline_lib.datasets.registry import group_of_name
from pipeline_lib.evaluate.intervals import accuracy_interval, accuracy_intervals, ratio_intervals
from pipeline_lib.evaluate.permutation import video_footage

INTRA_CLASS_CORRELATION = 0.4


def test_groups_of_one_size_are_a_sample_of_their_means():
    value_V = np.array([0.1, 0.3, 0.2, 0.6, 0.7, 0.5, 0.0, 0.2])
    mean_G = value_V.reshape(4, 2).mean(axis=1)
    half = student.ppf(0.975, 3) * mean_G.std(ddof=1) / 2
    [found] = ratio_intervals(value_V[:, None], np.ones((8, 1)), np.repeat(list("abcd"), 2))
    assert found == pytest.approx([mean_G.mean() - half, mean_G.mean() + half])


def test_videos_of_one_group_are_one_piece_of_evidence():
    value_V = np.array([0.1, 0.3, 0.2, 0.6])
    alone = ratio_intervals(value_V[:, None], np.ones((4, 1)), np.arange(4))
    copied = ratio_intervals(np.repeat(value_V, 50)[:, None], np.ones((200, 1)), np.repeat(np.arange(4), 50))
    assert copied[0] == pytest.approx(alone[0])


def test_a_higher_level_is_wider():
    value_V1 = np.random.default_rng(0).random((30, 1))
    [(low, high)], [(lower, higher)] = (
        ratio_intervals(value_V1, np.ones((30, 1)), np.arange(30), level=x) for x in (0.95, 0.99)
    )
    assert lower < low < high < higher


def test_one_group_says_nothing_of_another():
    assert ratio_intervals(np.full((5, 1), 0.25), np.ones((5, 1)), np.zeros(5)) == [[-1, 1]]
    low, high = accuracy_interval(np.ones(5, dtype=bool), np.zeros(5))
    assert low < 0.5
    assert high == 1


def test_ratios_weigh_groups_by_their_frames():
    right_V, frames_V = np.array([9.0, 0.0, 2.0]), np.array([10.0, 1.0, 4.0])
    [(low, high)] = ratio_intervals(right_V[:, None], frames_V[:, None], np.arange(3))
    assert (low + high) / 2 == pytest.approx(11 / 15) or high == 1


@pytest.mark.parametrize("num_groups", [2, 4, 30, 600])
@pytest.mark.parametrize("correct", [True, False])
def test_all_right_or_all_wrong_leaves_a_doubt_that_shrinks_with_groups(num_groups, correct):
    low, high = accuracy_interval(np.full(3 * num_groups, correct), np.repeat(np.arange(num_groups), 3))
    near, far = (1 - low, 1 - high) if correct else (high, low)
    assert far == 0
    assert 1 / num_groups < near < 6 / num_groups


def test_accuracies_are_between_0_and_1_and_in_their_intervals():
    rng = np.random.default_rng(0)
    for num_groups in (1, 2, 3, 5, 40):
        group_V = rng.integers(0, num_groups, 80)
        for share in (0.02, 0.5, 0.98):
            correct_V = rng.random(80) < share
            low, high = accuracy_interval(correct_V, group_V)
            assert 0 <= low <= correct_V.mean() <= high <= 1


def coverage(group_V: np.ndarray, accuracy: float, *, simulations: int) -> float:
    """Return how often the interval holds the accuracy, where groups are easy or hard by a beta distribution."""
    rng = np.random.default_rng(0)
    strength = 1 / INTRA_CLASS_CORRELATION - 1
    num_groups = group_V.max() + 1
    share_SG = rng.beta(accuracy * strength, (1 - accuracy) * strength, (simulations, num_groups))
    correct_VS = (rng.random((simulations, len(group_V))) < share_SG[:, group_V]).T.astype(float)
    ends_S2 = np.array(accuracy_intervals(correct_VS, np.ones_like(correct_VS), group_V))
    return float(((ends_S2[:, 0] <= accuracy) & (accuracy <= ends_S2[:, 1])).mean())


@pytest.mark.parametrize("fold", [1, 2, 3])
@pytest.mark.parametrize("accuracy", [0.6, 0.9])
def test_coverage_on_hmdb51s_real_groups(shared, fold, accuracy):
    listed = Hmdb51Splits().read(shared / "data" / "hmdb51_splits", fold)
    test = listed[listed["label"] == "test"].assign(group=lambda rows: rows["video"].map(group_of_name))
    group_V = np.unique(video_footage(test), return_inverse=True)[1]
    assert (len(group_V), group_V.max() + 1) == (1530, {1: 478, 2: 478, 3: 471}[fold])
    assert coverage(group_V, accuracy, simulations=1000) >= 0.92


@pytest.mark.parametrize("num_groups", [4, 6, 10, 30])
@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.97])
def test_coverage_with_few_groups(num_groups, accuracy):
    sizes_G = np.random.default_rng(num_groups).geometric(0.2, num_groups)
    assert coverage(np.repeat(np.arange(num_groups), sizes_G), accuracy, simulations=2000) >= 0.92


def test_videos_taken_one_by_one_would_be_too_sure():
    """What this replaces: with four groups of 14 videos an interval over videos covers far less."""
    rng = np.random.default_rng(0)
    share_SG = rng.beta(0.9, 0.6, (500, 4))
    mean_S = rng.binomial(14, share_SG).sum(axis=1) / 56
    half_S = 1.96 * np.sqrt(mean_S * (1 - mean_S) / 56)
    assert (np.abs(mean_S - 0.6) <= half_S).mean() < 0.6
    assert math.isclose(coverage(np.repeat(np.arange(4), 14), 0.6, simulations=500), 0.95, abs_tol=0.05)
