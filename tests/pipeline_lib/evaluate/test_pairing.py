"""Paired tests against enumeration and by hand."""

import itertools

import numpy as np
import pytest

from pipeline_lib.evaluate.pairing import MCNEMAR, SIGN_FLIP, holm, paired_test

ALONE = np.arange(100)
"""Groups of one video each."""


def test_mcnemar_by_hand():
    difference_V = np.array([1.0] * 8 + [-1.0] + [0.0] * 20)
    test, p_value = paired_test(difference_V, ALONE[: len(difference_V)], flips=10, seed=0)
    assert test == MCNEMAR
    assert p_value == pytest.approx(2 * (1 + 9) / 2**9)


def test_models_that_are_right_on_the_same_videos():
    assert paired_test(np.zeros(5), ALONE[: len(np.zeros(5))], flips=10, seed=0) == (MCNEMAR, 1.0)


def test_mcnemar_does_not_care_which_is_first():
    difference_V = np.array([1.0, 1.0, 1.0, -1.0, 0.0])
    assert paired_test(difference_V, ALONE[: len(difference_V)], flips=1, seed=0) == paired_test(
        -difference_V, ALONE[: len(difference_V)], flips=1, seed=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_against_all_of_them(seed):
    difference_V = np.random.default_rng(seed).integers(-2, 4, 11) / 3
    signs_RV = np.array(list(itertools.product((-1, 1), repeat=11)))
    expected = (np.abs(signs_RV @ difference_V) >= abs(difference_V.sum()) - 1e-9).mean()
    test, p_value = paired_test(difference_V, ALONE[: len(difference_V)], flips=40_000, seed=seed)
    assert test == SIGN_FLIP
    assert p_value == pytest.approx(expected, abs=0.01)


def test_sign_flips_of_models_that_are_alike_rarely_say_otherwise():
    rng = np.random.default_rng(0)
    p_values = [paired_test(rng.integers(-3, 4, 40) / 3, ALONE[:40], flips=400, seed=seed)[1] for seed in range(400)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08


def test_p_is_never_zero():
    assert paired_test(np.full(100, 0.5), ALONE[: len(np.full(100, 0.5))], flips=999, seed=0) == (SIGN_FLIP, 1 / 1000)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_groups_flip_as_wholes():
    """Twelve videos that one model alone gets right are little evidence if they come from three groups."""
    difference_V, group_V = np.ones(12), np.repeat(list("abc"), 4)
    assert paired_test(difference_V, ALONE[:12], flips=1000, seed=0) == (MCNEMAR, 2 / 2**12)
    assert paired_test(difference_V, group_V, flips=1000, seed=0) == (SIGN_FLIP, 2 / 2**3)


def test_groups_alike_within_keep_the_level():
    """Where videos of a group go together, flips of groups err as often as they say, and flips of videos far more often."""
    rng = np.random.default_rng(0)
    group_V = np.repeat(np.arange(20), 6)
    rejected = []
    for seed in range(200):
        difference_V = rng.integers(-1, 2, 20)[group_V].astype(float)
        by_group, by_video = (
            paired_test(difference_V, groups, flips=200, seed=seed)[1] for groups in (group_V, np.arange(120))
        )
        rejected.append((by_group < 0.05, by_video < 0.05))
    assert np.mean(rejected, axis=0)[0] <= 0.08
    assert np.mean(rejected, axis=0)[1] > 0.3
