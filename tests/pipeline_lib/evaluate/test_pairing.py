"""Paired tests against enumeration and by hand."""

import itertools

import numpy as np
import pytest

from pipeline_lib.evaluate.pairing import MCNEMAR, SIGN_FLIP, holm, paired_test


def test_mcnemar_by_hand():
    difference_V = np.array([1.0] * 8 + [-1.0] + [0.0] * 20)
    test, p_value = paired_test(difference_V, np.arange(len(difference_V)), flips=10, seed=0)
    assert test == MCNEMAR
    assert p_value == pytest.approx(2 * (1 + 9) / 2**9)


def test_models_that_are_right_on_the_same_videos():
    assert paired_test(np.zeros(5), np.arange(5), flips=10, seed=0) == (MCNEMAR, 1.0)


def test_mcnemar_does_not_care_which_is_first():
    difference_V = np.array([1.0, 1.0, 1.0, -1.0, 0.0])
    forth, back = (paired_test(sign * difference_V, np.arange(5), flips=1, seed=0) for sign in (1, -1))
    assert forth == back


@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_against_all_of_them(seed):
    difference_V = np.random.default_rng(seed).integers(-2, 4, 11) / 3
    signs_RV = np.array(list(itertools.product((-1, 1), repeat=11)))
    expected = (np.abs(signs_RV @ difference_V) >= abs(difference_V.sum()) - 1e-9).mean()
    test, p_value = paired_test(difference_V, np.arange(len(difference_V)), flips=40_000, seed=seed)
    assert test == SIGN_FLIP
    assert p_value == pytest.approx(expected, abs=0.01)


def test_sign_flips_of_models_that_are_alike_rarely_say_otherwise():
    rng = np.random.default_rng(0)
    p_values = [paired_test(rng.integers(-3, 4, 40) / 3, np.arange(40), flips=400, seed=seed)[1] for seed in range(400)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08


def test_videos_of_one_group_keep_one_sign():
    """Twenty videos of two groups are two pieces of evidence: half of the four flips are as extreme as what was seen."""
    test, p_value = paired_test(np.ones(20), np.repeat(["a", "b"], 10), flips=4000, seed=0)
    assert test == SIGN_FLIP
    assert p_value == pytest.approx(0.5, abs=0.03)


def test_groups_of_several_videos_that_are_right_alike():
    assert paired_test(np.zeros(4), np.repeat(["a", "b"], 2), flips=10, seed=0) == (SIGN_FLIP, 1.0)


def test_p_is_never_zero():
    assert paired_test(np.full(100, 0.5), np.arange(100), flips=999, seed=0) == (SIGN_FLIP, 1 / 1000)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
