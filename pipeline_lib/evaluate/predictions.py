"""Tables of predictions, one row per clip or per video."""

# N clips or videos, T frames of a clip, C classes

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline_lib.training.voting import Tally, valid_mask

TOP = 5
"""Number of classes for `top5_correct`."""


def clip_predictions(
    test: pd.DataFrame, probability_NTC: np.ndarray, clip_tally: Tally, classes: Sequence[str]
) -> pd.DataFrame:
    """Return one row per clip, in the order of `test`.

    - `predicted`: the mode of the voting frames' predictions (for ties see `pipeline_lib.training.voting`)
    - `predicted_by_mean`: the class with the largest mean probability over the voting frames
    - `confidence`, `confidence_by_mean`: the mean probability of these two classes
    - `frame_predicted`, `frame_confidence`: the prediction and confidence of each valid frame
    - `frames_correct`: the number of correct valid frames, whether they vote or not
    """
    names = np.asarray(classes, dtype=object)
    frame_NT, confidence_NT = names[probability_NTC.argmax(axis=2)], probability_NTC.max(axis=2)
    table = test[["clip", "video", "class_name", "group"]].copy()
    _add_predictions(table, clip_tally, names)
    table["valid_frames"] = test["valid_frames"].astype("int32")
    correct_NT = probability_NTC.argmax(axis=2) == _labels(table, classes)[:, None]
    valid_NT = valid_mask(test["valid_frames"].to_numpy(), correct_NT.shape[1])
    table["frames_correct"] = (correct_NT & valid_NT).sum(axis=1).astype("int32")
    lengths = test["valid_frames"].tolist()
    table["frame_predicted"] = [row_T[:length].tolist() for row_T, length in zip(frame_NT, lengths, strict=True)]
    table["frame_confidence"] = [row_T[:length].tolist() for row_T, length in zip(confidence_NT, lengths, strict=True)]
    return table


def video_predictions(clips: pd.DataFrame, clip_tally: Tally, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row per video of `clip_predictions`, in the order of the videos' first clips.

    The predictions are made as for clips, over the voting frames of all the video's clips. `top5_correct` says whether the true
    class is among the five with the largest mean probability. `num_clips`, `clips_correct`, `clips_correct_by_mean`,
    `num_frames` (valid frames) and `frames_correct` are the terms of clip and frame accuracy.
    """
    video_N, _ = pd.factorize(clips["video"])
    grouped = clips.groupby("video", sort=False)
    table = grouped[["class_name", "group"]].first().reset_index()
    pooled = clip_tally.pool(video_N, len(table))
    _add_predictions(table, pooled, np.asarray(classes, dtype=object))
    table["top5_correct"] = pooled.among_best(_labels(table, classes), TOP)
    counts = {"clips_correct": "correct", "clips_correct_by_mean": "correct_by_mean"}
    counts |= {"num_frames": "valid_frames", "frames_correct": "frames_correct"}
    table["num_clips"] = grouped.size().to_numpy(dtype=np.int32)
    for name, column in counts.items():
        table[name] = grouped[column].sum().to_numpy(dtype=np.int32)
    return table


def _add_predictions(table: pd.DataFrame, tally: Tally, names: np.ndarray) -> None:
    table["predicted"] = names[tally.predicted]
    table["confidence"] = tally.confidence
    table["correct"] = table["predicted"] == table["class_name"]
    table["predicted_by_mean"] = names[tally.predicted_by_mean]
    table["confidence_by_mean"] = tally.confidence_by_mean
    table["correct_by_mean"] = table["predicted_by_mean"] == table["class_name"]


def _labels(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    label_N = pd.Index(classes).get_indexer(pd.Index(table["class_name"]))
    assert (label_N >= 0).all(), "a class that the model was not trained on"
    return label_N
