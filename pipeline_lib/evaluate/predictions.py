"""Tables of what was predicted: a row a clip, a row a video."""

# N clips or videos, T frames of a clip, C classes

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline_lib.training.voting import Tally

TOP = 5
"""How many classes a video's true class may be among for `top5_correct`."""


def clip_predictions(
    test: pd.DataFrame, probability_NTC: np.ndarray, clip_tally: Tally, classes: Sequence[str]
) -> pd.DataFrame:
    """Return one row a clip, in the order of `test`.

    `predicted` is the mode of the valid frames' predictions (ties: see `pipeline_lib.training.voting`), `predicted_by_mean` the
    class of the largest mean probability over them; `confidence` and `confidence_by_mean` are the two classes' mean
    probabilities. `frame_predicted` and `frame_confidence` are each valid frame's own, `frames_correct` how many are right.
    """
    names = np.asarray(classes, dtype=object)
    frame_NT, confidence_NT = names[probability_NTC.argmax(axis=2)], probability_NTC.max(axis=2)
    table = test[["clip", "video", "class_name", "group"]].copy()
    _add_verdicts(table, clip_tally, names)
    table["valid_frames"] = test["valid_frames"].astype("int32")
    table["frames_correct"] = clip_tally.votes_NC[np.arange(len(table)), _labels(table, classes)].astype("int32")
    lengths = test["valid_frames"].tolist()
    table["frame_predicted"] = [row_T[:length].tolist() for row_T, length in zip(frame_NT, lengths, strict=True)]
    table["frame_confidence"] = [row_T[:length].tolist() for row_T, length in zip(confidence_NT, lengths, strict=True)]
    return table


def video_predictions(clips: pd.DataFrame, clip_tally: Tally, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row a video of `clip_predictions`, in the order of their first clips.

    The verdicts are the same two, over the valid frames of all the video's clips. `top5_correct` says whether the true class
    is among the five of the largest mean probability; `num_clips`, `clips_correct`, `clips_correct_by_mean`, `num_frames`
    (valid ones) and `frames_correct` are what accuracies of clips and frames are added up from.
    """
    video_N, _ = pd.factorize(clips["video"])
    grouped = clips.groupby("video", sort=False)
    table = grouped[["class_name", "group"]].first().reset_index()
    pooled = clip_tally.pool(video_N, len(table))
    _add_verdicts(table, pooled, np.asarray(classes, dtype=object))
    table["top5_correct"] = pooled.among_best(_labels(table, classes), TOP)
    counts = {"clips_correct": "correct", "clips_correct_by_mean": "correct_by_mean"}
    counts |= {"num_frames": "valid_frames", "frames_correct": "frames_correct"}
    table["num_clips"] = grouped.size().to_numpy(dtype=np.int32)
    for name, column in counts.items():
        table[name] = grouped[column].sum().to_numpy(dtype=np.int32)
    return table


def _add_verdicts(table: pd.DataFrame, counted: Tally, names: np.ndarray) -> None:
    table["predicted"] = names[counted.predicted]
    table["confidence"] = counted.confidence
    table["correct"] = table["predicted"] == table["class_name"]
    table["predicted_by_mean"] = names[counted.predicted_by_mean]
    table["confidence_by_mean"] = counted.confidence_by_mean
    table["correct_by_mean"] = table["predicted_by_mean"] == table["class_name"]


def _labels(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    label_N = pd.Index(classes).get_indexer(pd.Index(table["class_name"]))
    assert (label_N >= 0).all(), "a class that the model does not know"
    return label_N
