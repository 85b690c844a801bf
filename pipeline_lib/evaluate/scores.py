"""Numbers from the tables of predictions."""

# N clips, C classes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def overall_scores(
    predictions: pd.DataFrame, videos: pd.DataFrame, classes: Sequence[str], *, train: pd.DataFrame
) -> dict[str, Any]:
    """Return accuracies as fractions of the test part, beside what needs no model.

    `chance` is 1 / C. `majority_class` is the share of test clips that carry the label most frequent among the clips of
    `train`: the clip accuracy of always saying that one. On a tie there, the first in the alphabet.
    """
    most_frequent = train["class_name"].value_counts().sort_index().idxmax()
    right, num_frames = _frame_counts(predictions)
    return {
        "frame_accuracy": float(right.sum() / num_frames.sum()),
        "clip_accuracy": float(predictions["correct"].mean()),
        "video_accuracy": float(videos["correct"].mean()),
        "chance": 1 / len(classes),
        "majority_class": float((predictions["class_name"] == most_frequent).mean()),
        "num_frames": int(num_frames.sum()),
        "num_clips": len(predictions),
        "num_videos": len(videos),
    }


def class_scores(predictions: pd.DataFrame, videos: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row a class: precision, recall and F1 of its clips, accuracy of its frames and videos.

    What has no denominator (the recall of a class without test clips, the precision of one never predicted) is empty.
    """
    counts_CC = confusion_counts(predictions, classes)
    hits_C, actual_C, predicted_C = counts_CC.diagonal(), counts_CC.sum(axis=1), counts_CC.sum(axis=0)
    right, num_frames = _frame_counts(predictions)
    names, by_class = list(classes), predictions["class_name"]
    frame_accuracy = right.groupby(by_class).sum() / num_frames.groupby(by_class).sum()
    by_video = videos.groupby("class_name")["correct"]
    return pd.DataFrame(
        {
            "class": names,
            "clips": actual_C,
            "videos": by_video.size().reindex(names, fill_value=0).to_numpy(),
            "precision": _ratio(hits_C, predicted_C),
            "recall": _ratio(hits_C, actual_C),
            "f1": _ratio(2 * hits_C, actual_C + predicted_C),
            "frame_accuracy": frame_accuracy.reindex(names).to_numpy(),
            "video_accuracy": by_video.mean().reindex(names).to_numpy(),
        }
    )


def confusion_counts(predictions: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Return counts_CC of clips: rows are true classes, columns predicted ones."""
    index = pd.Index(classes)
    counts_CC = np.zeros((len(classes), len(classes)), dtype=np.int64)
    actual_N, predicted_N = (index.get_indexer(pd.Index(predictions[name])) for name in ("class_name", "predicted"))
    np.add.at(counts_CC, (actual_N, predicted_N), 1)
    return counts_CC


def _frame_counts(predictions: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return, for each clip, how many of its valid frames are labelled right, and how many it has."""
    rows = zip(predictions["frame_predicted"], predictions["class_name"], strict=True)
    right = [sum(name == true for name in frames) for frames, true in rows]
    return pd.Series(right, index=predictions.index), predictions["valid_frames"]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    ratio = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
