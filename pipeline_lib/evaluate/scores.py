"""Compute metrics from the tables of predictions."""

# N clips or videos, V videos, M metrics, C classes, B bins

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from pipeline_lib.evaluate.intervals import accuracy_intervals
from pipeline_lib.evaluate.predictions import TOP

ACCURACIES = {
    "frame_accuracy": ("frames_correct", "num_frames"),
    "clip_accuracy": ("clips_correct", "num_clips"),
    "clip_accuracy_by_mean": ("clips_correct_by_mean", "num_clips"),
    "video_accuracy": ("correct", None),
    "video_accuracy_by_mean": ("correct_by_mean", None),
}
"""Numerator and denominator columns of each accuracy in the video table; None counts videos."""

CALIBRATION_BINS = 15


def overall_scores(
    predictions: pd.DataFrame, videos: pd.DataFrame, classes: Sequence[str], *, train: pd.DataFrame
) -> dict[str, Any]:
    """Return accuracies on the test split as fractions, with intervals, and baselines that need no model.

    Accuracies are by the mode, or with the suffix `_by_mean` by mean probability. `macro_f1` (mode), `top5_accuracy` and
    `calibration_error` (mean probability) are of videos. `top5_accuracy` is None if there are at most five classes.
    `intervals` holds 95 % intervals over the `num_groups` groups (see `pipeline_lib.evaluate.intervals`).

    `chance` is 1 / C. `majority_class` is the clip accuracy of always predicting the most frequent class of `train`, and
    `majority_class_video` is the same for videos. Ties go to the first class in alphabetical order.
    """
    train_videos = train.drop_duplicates("video")
    return {
        **_accuracies(videos),
        "macro_f1": macro_f1(videos),
        "top5_accuracy": float(videos["top5_correct"].mean()) if len(classes) > TOP else None,
        "calibration_error": calibration_error(
            videos["confidence_by_mean"].to_numpy(), videos["correct_by_mean"].to_numpy(), CALIBRATION_BINS
        ),
        "chance": 1 / len(classes),
        "majority_class": _share_of_majority(predictions["class_name"], train["class_name"]),
        "majority_class_video": _share_of_majority(videos["class_name"], train_videos["class_name"]),
        "num_frames": int(videos["num_frames"].sum()),
        "num_clips": len(predictions),
        "num_videos": len(videos),
        "num_groups": int(videos["group"].nunique()),
        "intervals": _intervals(videos),
    }


def macro_f1(videos: pd.DataFrame) -> float:
    """Return the macro F1 of videos (mode) over the classes of the test split."""
    actual, names = videos["class_name"], sorted(set(videos["class_name"]))
    return float(f1_score(actual, videos["predicted"], labels=names, average="macro", zero_division=0))


def calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray, num_bins: int) -> float:
    """Return the expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Predictions are binned by confidence into `num_bins` bins of equal width, which include their upper edge. The error is the
    mean of the bins' gaps between accuracy and confidence, weighted by the number of predictions; 0 is perfectly calibrated.
    """
    bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gap_B = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=num_bins)
    return float(np.abs(gap_B).sum() / len(confidence_N))


def class_scores(predictions: pd.DataFrame, videos: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row per class: precision, recall and F1 of clips, accuracy of frames and videos.

    Undefined values are nan, such as the recall of a class without test clips or the precision of one never predicted.
    """
    names, by_class = list(classes), videos.groupby("class_name")
    precision_C, recall_C, f1_C, clips_C = precision_recall_fscore_support(
        predictions["class_name"], predictions["predicted"], labels=names, zero_division=np.nan
    )
    return pd.DataFrame(
        {
            "class": names,
            "clips": clips_C,
            "videos": by_class.size().reindex(names, fill_value=0).to_numpy(),
            "precision": precision_C,
            "recall": recall_C,
            "f1": f1_C,
            "frame_accuracy": (by_class["frames_correct"].sum() / by_class["num_frames"].sum()).reindex(names).to_numpy(),
            "video_accuracy": by_class["correct"].mean().reindex(names).to_numpy(),
        }
    )


def confusion_counts(predictions: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Return counts_CC of clips, with true classes as rows and predicted classes as columns."""
    counts_CC: np.ndarray = confusion_matrix(predictions["class_name"], predictions["predicted"], labels=list(classes))
    return counts_CC


def _accuracies(videos: pd.DataFrame) -> dict[str, float]:
    numerator_VM, denominator_VM = _terms(videos)
    return dict(zip(ACCURACIES, (numerator_VM.sum(axis=0) / denominator_VM.sum(axis=0)).tolist(), strict=True))


def _intervals(videos: pd.DataFrame) -> dict[str, list[float]]:
    return dict(zip(ACCURACIES, accuracy_intervals(*_terms(videos), videos["group"].to_numpy()), strict=True))


def _terms(videos: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return each video's terms of the numerator and the denominator of each accuracy, both (V, M)."""
    ones = np.ones(len(videos))
    pairs = [(videos[above], ones if below is None else videos[below]) for above, below in ACCURACIES.values()]
    numerators, denominators = zip(*pairs, strict=True)
    return np.column_stack(numerators).astype(np.float64), np.column_stack(denominators).astype(np.float64)


def _share_of_majority(labels: pd.Series, train_labels: pd.Series) -> float:
    return float((labels == train_labels.value_counts().sort_index().idxmax()).mean())
