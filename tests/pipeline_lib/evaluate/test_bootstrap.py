"""Bootstrap intervals against enumeration and against simulated collections."""

import itertools
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.chunk.groups import group_of_name
from pipeline_lib.evaluate.bootstrap import mean_interval, ratio_intervals, tail_probability
from pipeline_lib.evaluate.sources import video_sources


def test_quantiles_are_those_of_all_possible_resamples():
    numerator_VM = np.array([[3.0, 1.0], [0.0, 0.0], [5.0, 1.0], [2.0, 0.0]])
    denominator_VM = np.array([[4.0, 1.0], [9.0, 1.0], [5.0, 1.0], [7.0, 1.0]])
    drawn_RV = np.array(list(itertools.product(range(4), repeat=4)))
    ratio_RM = numerator_VM[drawn_RV].sum(axis=1) / denominator_VM[drawn_RV].sum(axis=1)
    tail = tail_probability(4, 0.95)
    expected = np.quantile(ratio_RM, (tail, 1 - tail), axis=0).T
    found = ratio_intervals(numerator_VM, denominator_VM, np.arange(4), resamples=40_000, seed=0)
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
        [(low, high)] = ratio_intervals(right_V[:, None], frames_V[:, None], np.arange(len(right_V)), resamples=400, seed=seed)
        covered.append(low <= 0.6 <= high)
        accuracy = right_V.sum() / frames_V.sum()
        half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / frames_V.sum())
        covered_if_frames_were_independent.append(abs(accuracy - 0.6) <= half)
    assert 0.91 <= np.mean(covered) <= 0.98
    assert np.mean(covered_if_frames_were_independent) < 0.5


def test_mean_of_videos_that_are_all_right():
    assert mean_interval(np.ones(9, dtype=bool), np.arange(9), resamples=100, seed=0) == [1.0, 1.0]


def test_one_group():
    assert mean_interval(np.array([0.25, 0.75]), np.array(["a", "a"]), resamples=100, seed=0) == [0.5, 0.5]


def test_the_seed_decides():
    value_V = np.random.default_rng(0).random(50)
    first, again, other = (mean_interval(value_V, np.arange(50), resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("resamples", [1, 10_000])
def test_memory_is_bounded_for_all_of_hmdb51(resamples):
    ones_VM = np.ones((1530, 5))
    tracemalloc.start()
    intervals = ratio_intervals(ones_VM, ones_VM, np.arange(1530), resamples=resamples, seed=0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert intervals == [[1.0, 1.0]] * 5
    assert peak_bytes < 60e6


def draw_groups(rng, group_V, *, accuracy, correlation):
    """Draw which videos are right: each group's probability is beta-distributed, so that its videos correlate."""
    spread = (1 - correlation) / correlation
    groups, index_V = np.unique(group_V, return_inverse=True)
    return rng.random(len(group_V)) < rng.beta(accuracy * spread, (1 - accuracy) * spread, len(groups))[index_V]


def coverage(group_V, *, resampled, trials, correlation=0.4, accuracy=0.6):
    """Return how often the interval, over the groups in `resampled`, holds the accuracy that was drawn from."""
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(trials):
        right_V = draw_groups(rng, group_V, accuracy=accuracy, correlation=correlation)
        low, high = mean_interval(right_V, resampled, resamples=400, seed=seed)
        covered.append(low <= accuracy <= high)
    return np.mean(covered)


@pytest.fixture(scope="session")
def hmdb51_groups(shared):
    """Return the footage of every test video of HMDB-51's first fold."""
    rows = [
        (path.name.rsplit("_test_split", 1)[0], line.split()[0])
        for path in sorted((shared / "data" / "hmdb51_splits").glob("*_test_split1.txt"))
        for line in path.read_text().splitlines()
        if line.split()[1:] == ["2"]
    ]
    videos = pd.DataFrame(rows, columns=["class_name", "name"])
    videos["group"] = [group_of_name(f"{class_name}/{name}") for class_name, name in rows]
    return video_sources(videos).to_numpy()


def test_intervals_cover_on_the_groups_of_hmdb51(hmdb51_groups):
    assert (len(hmdb51_groups), len(set(hmdb51_groups))) == (1530, 478)
    assert coverage(hmdb51_groups, resampled=hmdb51_groups, trials=300) >= 0.92
    assert coverage(hmdb51_groups, resampled=np.arange(1530), trials=300) < 0.85


@pytest.mark.parametrize(("num_groups", "least"), [(5, 0.92), (12, 0.92)])
def test_intervals_of_few_groups_are_wider(num_groups, least):
    group_V = np.repeat(np.arange(num_groups), 10)
    assert coverage(group_V, resampled=group_V, trials=300) >= least


def test_tails_of_many_groups_are_the_usual_ones():
    assert tail_probability(10_000, 0.95) == pytest.approx(0.025, abs=1e-4)
    assert tail_probability(4, 0.95) < tail_probability(12, 0.95) < 0.025
