"""Scores worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.confusion import draw_confusion
from pipeline_lib.evaluate.intervals import accuracy_interval
from pipeline_lib.evaluate.scores import calibration_error, class_scores, confusion_counts, macro_f1, overall_scores

CLASSES = ("jump", "run", "sit")


@pytest.fixture
def tables():
    clips = pd.DataFrame(
        [("r", "run", "run"), ("r", "run", "sit"), ("s", "sit", "sit"), ("s", "sit", "run"), ("t", "sit", "sit")],
        columns=["video", "class_name", "predicted"],
    )
    columns = ["video", "class_name", "predicted", "predicted_by_mean", "confidence_by_mean", "num_clips", "clips_correct"]
    columns += ["clips_correct_by_mean", "num_frames", "frames_correct", "top5_correct"]
    rows = [
        ("r", "run", "run", "run", 0.9, 2, 1, 2, 4, 2, True),
        ("s", "sit", "run", "jump", 0.5, 2, 1, 0, 3, 2, False),
        ("t", "sit", "sit", "sit", 0.6, 1, 1, 1, 1, 1, True),
    ]
    videos = pd.DataFrame(rows, columns=columns)
    videos["correct"] = videos["predicted"] == videos["class_name"]
    videos["correct_by_mean"] = videos["predicted_by_mean"] == videos["class_name"]
    videos["group"] = ["film", "film", "other"]
    return clips, videos


def train_clips(*class_names, videos=None):
    return pd.DataFrame({"class_name": class_names, "video": videos or [str(n) for n in range(len(class_names))]})


def test_overall(tables):
    scores = overall_scores(*tables, CLASSES, train=train_clips("sit", "run", "jump", "jump"))
    assert scores["frame_accuracy"] == 5 / 8
    assert scores["clip_accuracy"] == scores["clip_accuracy_by_mean"] == 3 / 5
    assert scores["video_accuracy"] == scores["video_accuracy_by_mean"] == 2 / 3
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert scores["calibration_error"] == pytest.approx((0.1 + 0.5 + 0.4) / 3)
    assert scores["chance"] == 1 / 3
    assert scores["majority_class"] == scores["majority_class_video"] == 0  # `jump` leads training and is not tested
    assert (scores["num_frames"], scores["num_clips"], scores["num_videos"]) == (8, 5, 3)


def test_majority_class_is_decided_by_the_training_part(tables):
    """Two videos run, one sits; yet the clips of the one are more."""
    train = train_clips("run", "run", "sit", "sit", "sit", videos=["a", "b", "c", "c", "c"])
    scores = overall_scores(*tables, CLASSES, train=train)
    assert scores["majority_class"] == 3 / 5
    assert scores["majority_class_video"] == 1 / 3


def test_top5_needs_a_sixth_class(tables):
    train = train_clips("run")
    assert overall_scores(*tables, CLASSES, train=train)["top5_accuracy"] is None
    assert overall_scores(*tables, tuple("abcdef"), train=train)["top5_accuracy"] == 2 / 3


def test_intervals_are_over_groups(tables):
    clips, videos = tables
    scores = overall_scores(clips, videos, CLASSES, train=train_clips("run"))
    assert list(scores["intervals"]) == [name for name in scores if name.split("_")[1:2] == ["accuracy"] and name[:3] != "top"]
    assert (scores["num_videos"], scores["num_groups"]) == (3, 2)
    alone = overall_scores(clips, videos.assign(group=videos["video"]), CLASSES, train=train_clips("run"))
    assert alone["num_groups"] == 3
    assert scores["intervals"]["video_accuracy"] == accuracy_interval(videos["correct"].to_numpy(), videos["group"].to_numpy())
    assert scores["intervals"] != alone["intervals"]


def test_macro_f1_weighs_classes_alike_and_knows_the_test_part_only():
    rows = [("run", "run")] * 8 + [("run", "sit")] * 2 + [("sit", "sit"), ("sit", "jump")]
    videos = pd.DataFrame(rows, columns=["class_name", "predicted"])
    videos["correct"] = videos["class_name"] == videos["predicted"]
    assert macro_f1(videos) == pytest.approx((16 / 18 + 2 / 5) / 2)


def test_calibration_error_by_hand():
    confidence_N, correct_N = np.array([0.1, 0.3, 0.9, 0.7, 0.5]), np.array([False, True, True, False, True])
    # (0, 0.5]: 2 of 3 right at 0.3 on average; (0.5, 1]: 1 of 2 at 0.8.
    assert calibration_error(confidence_N, correct_N, 2) == pytest.approx(3 / 5 * (2 / 3 - 0.3) + 2 / 5 * 0.3)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True]), 15) == 0
    assert calibration_error(np.array([0.0]), np.array([True]), 15) == 1


def test_calibration_error_of_honest_confidences_is_small():
    rng = np.random.default_rng(0)
    confidence_N = rng.random(20_000)
    correct_N = rng.random(20_000) < confidence_N
    assert calibration_error(confidence_N, correct_N, 15) < 0.02
    assert calibration_error(confidence_N**2, correct_N, 15) > 0.1


def test_per_class(tables):
    table = class_scores(*tables, CLASSES).set_index("class")
    assert confusion_counts(tables[0], CLASSES).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    assert table.loc["run", ["clips", "videos", "precision", "recall", "f1"]].tolist() == [2, 1, 0.5, 0.5, 0.5]
    assert table.loc["run", ["frame_accuracy", "video_accuracy"]].tolist() == [2 / 4, 1.0]
    assert table.loc["sit", ["frame_accuracy", "video_accuracy"]].tolist() == [3 / 4, 1 / 2]
    assert table.loc["jump", ["clips", "videos"]].tolist() == [0, 0]
    assert table.loc["jump", ["precision", "recall", "f1", "frame_accuracy", "video_accuracy"]].isna().all()


@pytest.mark.parametrize("num_classes", [2, 7, pytest.param(51, marks=pytest.mark.slow)])
def test_confusion_is_drawn_for_any_number_of_classes(tmp_path, num_classes):
    counts = np.random.default_rng(0).integers(0, 3, (num_classes, num_classes)) + 20 * np.eye(num_classes, dtype=int)
    counts[0] = 0
    names = [f"class_$x_{index}" for index in range(num_classes)]
    draw_confusion(tmp_path / "confusion.png", counts, names, title="80 % of 100")
    assert (tmp_path / "confusion.png").stat().st_size > 5_000
