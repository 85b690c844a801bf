"""Scores worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.confusion import draw_confusion
from pipeline_lib.evaluate.pointing import score_pointing
from pipeline_lib.evaluate.scores import class_scores, confusion_counts, overall_scores

CLASSES = ("jump", "run", "sit")


@pytest.fixture
def tables():
    rows = [
        ("run", "run", ["run", "run", "sit"]),
        ("run", "sit", ["sit"]),
        ("sit", "sit", ["sit", "sit"]),
        ("sit", "run", ["run", "run"]),
    ]
    predictions = pd.DataFrame(rows, columns=["class_name", "predicted", "frame_predicted"])
    predictions["valid_frames"] = predictions["frame_predicted"].map(len)
    predictions["correct"] = predictions["predicted"] == predictions["class_name"]
    videos = pd.DataFrame({"class_name": ["run", "sit"], "predicted": ["run", "run"], "correct": [True, False]})
    return predictions, videos


def test_overall(tables):
    train = pd.DataFrame({"class_name": ["sit", "sit", "run", "jump", "run", "jump", "jump"]})
    scores = overall_scores(*tables, CLASSES, train=train)
    assert scores["frame_accuracy"] == 4 / 8
    assert scores["clip_accuracy"] == 2 / 4
    assert scores["video_accuracy"] == 1 / 2
    assert scores["chance"] == 1 / 3
    assert scores["majority_class"] == 0  # `jump` leads training and is not tested


def test_majority_class_is_decided_by_the_training_part(tables):
    train = pd.DataFrame({"class_name": ["sit", "sit", "run"]})
    assert overall_scores(*tables, CLASSES, train=train)["majority_class"] == 2 / 4


def test_per_class(tables):
    table = class_scores(*tables, CLASSES).set_index("class")
    assert confusion_counts(tables[0], CLASSES).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert table.loc["run", ["clips", "videos", "precision", "recall", "f1"]].tolist() == [2, 1, 0.5, 0.5, 0.5]
    assert table.loc["run", ["frame_accuracy", "video_accuracy"]].tolist() == [2 / 4, 1.0]
    assert table.loc["jump", ["clips", "videos"]].tolist() == [0, 0]
    assert table.loc["jump", ["precision", "recall", "f1", "frame_accuracy", "video_accuracy"]].isna().all()


def attention_on(*cells, grid=2):
    maps = np.full((1, len(cells), grid, grid), 0.1, dtype=np.float32)
    for time, (row, column) in enumerate(cells):
        maps[0, time, row, column] = 0.7
    return maps


def test_pointing_by_hand():
    test = pd.DataFrame({"video": ["a"], "first_frame": [30], "valid_frames": [3]})
    boxes = pd.DataFrame(
        [("a", 2.0, 0.5, 0.0, 1.0, 0.5), ("a", 2.06, 0.0, 0.0, 1.0, 0.5), ("b", 2.1, 0, 0, 1, 1), ("a", 2.3, 0, 0, 1, 1)],
        columns=["video", "time_seconds", "x0", "y0", "x1", "y1"],
    )
    # Frames at 2.0, 2.0667 and 2.1333 s; the last has no box near; the padded fourth does not count.
    attention = attention_on((0, 1), (1, 0), (0, 0), (0, 0))
    assert score_pointing(test, attention, boxes, fps=15.0) == {
        "accuracy": 1 / 2,
        "chance": (1 / 4 + 2 / 4) / 2,
        "num_frames": 2,
    }


def test_pointing_without_boxes_of_the_test_videos_is_none_and_said_so(caplog):
    test = pd.DataFrame({"video": ["a"], "first_frame": [0], "valid_frames": [1]})
    boxes = pd.DataFrame([("b", 0.0, 0, 0, 1, 1)], columns=["video", "time_seconds", "x0", "y0", "x1", "y1"])
    assert score_pointing(test, attention_on((0, 0)), boxes, fps=15.0) is None
    assert "attention is not checked" in caplog.text


@pytest.mark.parametrize("num_classes", [2, 7, 51])
def test_confusion_is_drawn_for_any_number_of_classes(tmp_path, num_classes):
    counts = np.random.default_rng(0).integers(0, 3, (num_classes, num_classes)) + 20 * np.eye(num_classes, dtype=int)
    counts[0] = 0
    names = [f"class_$x_{index}" for index in range(num_classes)]
    draw_confusion(tmp_path / "confusion.png", counts, names, title="80 % of 100")
    assert (tmp_path / "confusion.png").stat().st_size > 5_000
