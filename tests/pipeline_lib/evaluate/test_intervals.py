"""Bootstrap intervals against enumeration and against simulated collections."""

import itertools
import tracemalloc

import numpy as np
import pytest

from pipeline_lib.evaluate.bootstrap import mean_interval, ratio_intervals


def test_quantiles_are_those_of_all_possible_resamples():
    numerator_VM = np.array([[3.0, 1.0], [0.0, 0.0], [5.0, 1.0], [2.0, 0.0]])
    denominator_VM = np.array([[4.0, 1.0], [9.0, 1.0], [5.0, 1.0], [7.0, 1.0]])
    drawn_RV = np.array(list(itertools.product(range(4), repeat=4)))
    ratio_RM = numerator_VM[drawn_RV].sum(axis=1) / denominator_VM[drawn_RV].sum(axis=1)
    expected = np.quantile(ratio_RM, (0.025, 0.975), axis=0).T
    found = ratio_intervals(numerator_VM, denominator_VM, resamples=40_000, seed=0)
    np.testing.assert_allclose(found, expected, atol=0.015)


def simulate(rng, num_videos=60):
    """Draw frames of videos that are easy or hard as wholes; the expected frame accuracy is 0.6."""
    num_frames = rng.integers(20, 200, num_videos)
    return rng.binomial(num_frames, rng.beta(0.6, 0.4, num_videos)), num_frames


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered, covered_if_frames_were_independent = [], []
    for seed in range(400):
        right_V, frames_V = simulate(rng)
        [(low, high)] = ratio_intervals(right_V[:, None], frames_V[:, None], resamples=400, seed=seed)
        covered.append(low <= 0.6 <= high)
        accuracy = right_V.sum() / frames_V.sum()
        half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / frames_V.sum())
        covered_if_frames_were_independent.append(abs(accuracy - 0.6) <= half)
    assert 0.91 <= np.mean(covered) <= 0.98
    assert np.mean(covered_if_frames_were_independent) < 0.5


def test_mean_of_videos_that_are_all_right():
    assert mean_interval(np.ones(9, dtype=bool), resamples=100, seed=0) == [1.0, 1.0]


def test_one_video():
    assert mean_interval(np.array([0.25]), resamples=100, seed=0) == [0.25, 0.25]


def test_the_seed_decides():
    value_V = np.random.default_rng(0).random(50)
    first, again, other = (mean_interval(value_V, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("resamples", [1, 10_000])
def test_memory_is_bounded_for_all_of_hmdb51(resamples):
    ones_VM = np.ones((1530, 5))
    tracemalloc.start()
    intervals = ratio_intervals(ones_VM, ones_VM, resamples=resamples, seed=0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert intervals == [[1.0, 1.0]] * 5
    assert peak_bytes < 60e6
