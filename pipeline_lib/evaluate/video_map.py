"""Video-mAP: the mean over classes of the average precision of tubes, ranked by the class's probability.

Each video has one tube, which stands for every class with the video's mean probability of it. It is right for the video's own
class if its IoU with the actor's reaches a limit. Tubes of other classes' videos are wrong, with or without boxes; a video of
the class without boxes is left out, since nobody knows. Precision is not interpolated.
"""

# V videos, C classes, G groups with a box

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline_lib.evaluate.intervals import jackknife_interval

VIDEO_MAP = {"video_map_20": 0.2, "video_map_50": 0.5}
"""Measures, and the IoU that counts as right."""


def average_precision(score_V: np.ndarray, is_class_V: np.ndarray, iou_V: np.ndarray, limit: float) -> float:
    """Return the average precision of one class; nan if no video of the class has boxes.

    Args:
        score_V: probability of the class.
        is_class_V: whether the video is of the class.
        iou_V: mean IoU of the video's tube; nan without boxes.
        limit: the IoU that counts as right.
    """
    known_V = ~is_class_V | np.isfinite(iou_V)
    right_V = (is_class_V & (np.nan_to_num(iou_V) >= limit))[known_V]
    num_actors = int(is_class_V[known_V].sum())
    if not num_actors:
        return float("nan")
    ranked_V = right_V[np.argsort(-score_V[known_V], kind="stable")]
    precision_V = np.cumsum(ranked_V) / np.arange(1, len(ranked_V) + 1)
    return float(precision_V[ranked_V].sum() / num_actors)


def class_precisions(
    videos: pd.DataFrame, classes: Sequence[str], probability_VC: np.ndarray, iou_V: np.ndarray, limit: float
) -> dict[str, float]:
    """Return the average precision of each class with boxes; `videos` has the column `class_name`."""
    label_V = videos["class_name"].to_numpy()
    rows = {name: average_precision(probability_VC[:, c], label_V == name, iou_V, limit) for c, name in enumerate(classes)}
    return {name: value for name, value in rows.items() if not np.isnan(value)}


def video_map(
    videos: pd.DataFrame, classes: Sequence[str], probability_VC: np.ndarray, iou_V: np.ndarray, limit: float
) -> float:
    """Return the mean average precision over the classes with boxes; nan if there is none."""
    rows = class_precisions(videos, classes, probability_VC, iou_V, limit)
    return float(np.mean(list(rows.values()))) if rows else float("nan")


def video_map_interval(
    videos: pd.DataFrame, classes: Sequence[str], probability_VC: np.ndarray, iou_V: np.ndarray, limit: float
) -> list[float]:
    """Return the 95 % interval of `video_map` over groups with boxes, by the jackknife; `videos` also has `group`."""
    group_V = videos["group"].to_numpy()
    left_out = [
        video_map(videos[kept_V], classes, probability_VC[kept_V], iou_V[kept_V], limit)
        for group in pd.unique(group_V[np.isfinite(iou_V)])
        for kept_V in [group_V != group]
    ]
    whole = video_map(videos, classes, probability_VC, iou_V, limit)
    return jackknife_interval(whole, np.array([value for value in left_out if not np.isnan(value)]), limits=(0, 1))
