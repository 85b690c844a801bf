"""Video-mAP by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.video_map import average_precision, class_precisions, video_map, video_map_interval

NAN = float("nan")
VIDEOS = pd.DataFrame(
    {"class_name": ["run", "run", "run", "sit", "sit", "wave"], "group": ["f", "g", "h", "f", "g", "h"]},
)
CLASSES = ("run", "sit", "wave")
PROBABILITY_VC = np.array(
    [[0.9, 0.1, 0.0], [0.4, 0.5, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.8, 0.0], [0.1, 0.0, 0.9]],
)
IOU_V = np.array([0.6, 0.3, 0.1, 0.5, NAN, NAN])


def test_average_precision_by_hand():
    """Ranked for run: v0 right, v2 wrong (IoU 0.1), v3 of another class, v1 right, v4, v5: (1/1 + 2/4) / 3 actors."""
    is_run_V = (VIDEOS["class_name"] == "run").to_numpy()
    assert average_precision(PROBABILITY_VC[:, 0], is_run_V, IOU_V, 0.2) == pytest.approx((1 + 2 / 4) / 3)
    assert average_precision(PROBABILITY_VC[:, 0], is_run_V, IOU_V, 0.5) == pytest.approx(1 / 3)


def test_the_mean_is_over_classes_with_boxes():
    """sit: v1 (another class) before v3; v4 is of the class and has no box, so it is left out."""
    assert class_precisions(VIDEOS, CLASSES, PROBABILITY_VC, IOU_V, 0.2) == pytest.approx({"run": 0.5, "sit": 0.5})
    assert video_map(VIDEOS, CLASSES, PROBABILITY_VC, IOU_V, 0.2) == pytest.approx(0.5)
    assert np.isnan(video_map(VIDEOS, CLASSES, PROBABILITY_VC, np.full(6, NAN), 0.2))


def test_the_interval_is_the_jackknifes():
    low, high = video_map_interval(VIDEOS, CLASSES, PROBABILITY_VC, IOU_V, 0.2)
    left_out = []
    for group in ("f", "g", "h"):
        kept = (VIDEOS["group"] != group).to_numpy()
        left_out.append(video_map(VIDEOS[kept], CLASSES, PROBABILITY_VC[kept], IOU_V[kept], 0.2))
    error = np.sqrt(2 / 3 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert [low, high] == pytest.approx([max(0, 0.5 - 4.302653 * error), min(1, 0.5 + 4.302653 * error)])


def test_one_group_with_boxes_says_nothing():
    assert video_map_interval(VIDEOS, CLASSES, PROBABILITY_VC, np.array([0.6, NAN, NAN, 0.5, NAN, NAN]), 0.2) == [0, 1]
