"""Tables of predictions worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.predictions import clip_predictions, video_predictions
from pipeline_lib.training.voting import tally

CLASSES = ("jump", "run", "sit")


@pytest.fixture
def tables():
    """Return the tables of three clips of two videos; the second clip's last frame is padding."""
    probability_NTC = np.array(
        [
            [[0.0, 0.6, 0.4], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]],
            [[0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]],
            [[0.5, 0.2, 0.3], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7]],
        ]
    )
    rows = [("b#0", "b", "run", 3), ("b#3", "b", "run", 2), ("a#0", "a", "sit", 3)]
    test = pd.DataFrame(rows, columns=["clip", "video", "class_name", "valid_frames"]).assign(group="film")
    counted = tally(probability_NTC, test["valid_frames"].to_numpy())
    clips = clip_predictions(test, probability_NTC, counted, CLASSES)
    return clips, video_predictions(clips, counted, CLASSES)


def test_clips_by_mode_and_by_mean(tables):
    clips, _ = tables
    assert clips["predicted"].tolist() == ["run", "run", "jump"]
    np.testing.assert_allclose(clips["confidence"], [1.2 / 3, 1.0 / 2, 1.1 / 3])
    assert clips["correct"].tolist() == [True, True, False]
    assert clips["predicted_by_mean"].tolist() == ["sit", "run", "sit"]
    np.testing.assert_allclose(clips["confidence_by_mean"], [1.8 / 3, 1.0 / 2, 1.3 / 3])
    assert clips["correct_by_mean"].tolist() == [False, True, True]
    assert clips["frames_correct"].tolist() == [2, 1, 1]
    assert clips["frame_predicted"].tolist() == [["run", "run", "sit"], ["run", "sit"], ["jump", "jump", "sit"]]


def test_videos_by_mode_and_by_mean(tables):
    _, videos = tables
    assert videos["video"].tolist() == ["b", "a"]
    assert videos["predicted"].tolist() == ["run", "jump"]
    assert videos["predicted_by_mean"].tolist() == ["sit", "sit"]
    np.testing.assert_allclose(videos["confidence"], [2.2 / 5, 1.1 / 3])
    np.testing.assert_allclose(videos["confidence_by_mean"], [2.6 / 5, 1.3 / 3])
    assert videos["correct"].tolist() == [True, False]
    assert videos["correct_by_mean"].tolist() == [False, True]


def test_videos_hold_what_accuracies_are_added_up_from(tables):
    _, videos = tables
    counts = videos[["num_clips", "clips_correct", "clips_correct_by_mean", "num_frames", "frames_correct"]]
    assert counts.to_numpy().tolist() == [[2, 2, 1, 5, 3], [1, 0, 1, 3, 1]]
    assert videos["top5_correct"].all()


def test_top_five_of_six_classes():
    probability_NTC = np.array([[[0.4, 0.2, 0.15, 0.12, 0.08, 0.05]]] * 2)
    test = pd.DataFrame({"clip": ["x", "y"], "video": ["x", "y"], "class_name": ["e", "f"], "valid_frames": [1, 1]}).assign(
        group="film"
    )
    counted = tally(probability_NTC, np.ones(2, dtype=int))
    clips = clip_predictions(test, probability_NTC, counted, tuple("abcdef"))
    assert video_predictions(clips, counted, tuple("abcdef"))["top5_correct"].tolist() == [True, False]
