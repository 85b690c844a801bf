"""Labels permuted within pieces of footage."""

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.permutation import mixed_and_single, permute_labels, video_footage


def test_a_source_is_the_group_without_its_class():
    rows = [("movie_1_ride_bike", "ride_bike"), ("movie_1_sit", "sit"), ("v_Sit_g01", "Sit"), ("sit/clip7", "sit")]
    videos = pd.DataFrame(rows, columns=["group", "class_name"], index=[3, 1, 4, 2])
    assert video_footage(videos).to_dict() == {3: "movie_1", 1: "movie_1", 4: "v_Sit_g01", 2: "sit/clip7"}


@pytest.fixture
def labelled():
    """Return two pieces of footage of several classes and four of one: a, b, then c to f."""
    footage_V = pd.Series(list("aaaabbbccccdddeff"))
    label_V = np.array([0, 0, 1, 2, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 3])
    return footage_V, label_V


def test_sources_are_told_apart(labelled):
    mixed, single = mixed_and_single(*labelled)
    assert [row_S.tolist() for row_S in mixed] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [row_S.tolist() for row_S in single] == [[7, 8, 9, 10], [11, 12, 13], [14], [15, 16]]


@pytest.mark.parametrize("seed", range(5))
def test_what_a_permutation_keeps(labelled, seed):
    footage_V, label_V = labelled
    mixed, single = mixed_and_single(footage_V, label_V)
    permuted_V = permute_labels(label_V, mixed, single, np.random.default_rng(seed))
    by_source = pd.Series(permuted_V).groupby(footage_V)
    assert [sorted(by_source.get_group(name)) for name in "ab"] == [[0, 0, 1, 2], [0, 1, 1]]
    assert by_source.nunique()[list("cdef")].tolist() == [1, 1, 1, 1]
    assert sorted(by_source.first()[list("cdef")]) == [0, 1, 2, 3]


def test_every_label_comes_to_every_place(labelled):
    footage_V, label_V = labelled
    mixed, single = mixed_and_single(footage_V, label_V)
    rng = np.random.default_rng(0)
    drawn_RV = np.array([permute_labels(label_V, mixed, single, rng) for _ in range(2000)])
    np.testing.assert_allclose((drawn_RV[:, 0] == 0).mean(), 1 / 2, atol=0.04)
    np.testing.assert_allclose((drawn_RV[:, 4] == 0).mean(), 1 / 3, atol=0.04)
    np.testing.assert_allclose([(drawn_RV[:, 7] == label).mean() for label in range(4)], 1 / 4, atol=0.04)


def test_one_source_of_one_class_stays():
    label_V = np.zeros(3, dtype=int)
    mixed, single = mixed_and_single(pd.Series(list("aaa")), label_V)
    assert permute_labels(label_V, mixed, single, np.random.default_rng(0)).tolist() == [0, 0, 0]
