"""Votes of frames for clips and videos."""

import numpy as np

from pipeline_lib.training.voting import tally


def probabilities(*frames):
    return np.array([frames])


def test_the_mode_wins_though_another_class_is_surer():
    counted = tally(probabilities([0.6, 0.4], [0.6, 0.4], [0.0, 1.0]), np.array([3]))
    assert counted.predicted.tolist() == [0]
    np.testing.assert_allclose(counted.confidence, [0.4])


def test_a_tie_goes_to_the_larger_sum_of_probability():
    counted = tally(probabilities([0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9], [0.0, 0.2, 0.8]), np.array([2]))
    assert counted.predicted.tolist() == [1]
    # Class 2 has the largest sum of all, but fewer votes than the tied two.
    counted = tally(
        probabilities([0.45, 0.15, 0.4], [0.45, 0.15, 0.4], [0.1, 0.5, 0.4], [0.1, 0.5, 0.4], [0.0, 0.1, 0.9]), np.array([5])
    )
    assert counted.predicted.tolist() == [1]


def test_padded_frames_have_no_vote_and_no_weight():
    counted = tally(probabilities([0.9, 0.1], [0.2, 0.8], [0.2, 0.8]), np.array([1]))
    assert counted.predicted.tolist() == [0]
    np.testing.assert_allclose(counted.confidence, [0.9])


def test_only_the_last_valid_frames_vote():
    frames = [0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.9, 0.1]
    counted = tally(probabilities(*frames), np.array([4]), last=2)
    assert counted.votes_NC.tolist() == [[0, 2]]
    np.testing.assert_allclose(counted.confidence_by_mean, [0.7])
    whole = tally(probabilities(*frames), np.array([4]), last=9)
    assert whole.votes_NC.tolist() == tally(probabilities(*frames), np.array([4])).votes_NC.tolist() == [[2, 2]]


def test_a_video_is_the_vote_of_all_its_frames_not_of_its_clips():
    short = [[0.4, 0.6], [0.5, 0.5], [0.5, 0.5]]
    long = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    counted = tally(np.array([short, short, long]), np.array([1, 1, 3]))
    assert counted.predicted.tolist() == [1, 1, 0]
    videos = counted.pool(np.array([0, 0, 0]), 1)
    assert videos.predicted.tolist() == [0]
    np.testing.assert_allclose(videos.confidence, [(0.4 + 0.4 + 2.7) / 5])


def test_the_mean_probability_may_say_otherwise_than_the_mode():
    counted = tally(probabilities([0.6, 0.4], [0.6, 0.4], [0.0, 1.0]), np.array([3]))
    assert counted.predicted_by_mean.tolist() == [1]
    np.testing.assert_allclose(counted.confidence_by_mean, [0.6])


def test_the_mean_leaves_padded_frames_out():
    counted = tally(probabilities([0.9, 0.1], [0.0, 1.0], [0.0, 1.0]), np.array([1]))
    assert counted.predicted_by_mean.tolist() == [0]
    np.testing.assert_allclose(counted.confidence_by_mean, [0.9])


def test_the_mean_of_a_video_is_over_frames():
    counted = tally(np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.4, 0.6], [0.2, 0.8]]]), np.array([1, 2])).pool(np.array([0, 0]), 1)
    assert counted.predicted_by_mean.tolist() == [0]
    np.testing.assert_allclose(counted.confidence_by_mean, [1.6 / 3])


def test_among_the_best():
    counted = tally(probabilities([0.4, 0.3, 0.2, 0.1]).repeat(4, axis=0), np.ones(4, dtype=int))
    assert counted.among_best(np.arange(4), 1).tolist() == [True, False, False, False]
    assert counted.among_best(np.arange(4), 3).tolist() == [True, True, True, False]


def test_a_tie_is_not_among_the_best():
    counted = tally(probabilities([0.5, 0.25, 0.25]), np.array([1]))
    assert not counted.among_best(np.array([1]), 2).any()
    assert counted.among_best(np.array([2]), 3).all()
