"""Compare the models of a run over all folds and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.evaluate.intervals import ratio_intervals
from pipeline_lib.evaluate.pairing import holm, paired_test
from pipeline_lib.params import EvaluateParams

COLUMNS = {
    "video_accuracy": "video accuracy (mode)",
    "video_accuracy_by_mean": "video accuracy (mean probability)",
    "clip_accuracy": "clip accuracy (mode)",
    "clip_accuracy_by_mean": "clip accuracy (mean probability)",
    "frame_accuracy": "frame accuracy",
    "macro_f1": "macro F1 (videos, mode)",
    "top5_accuracy": "top-5 accuracy (videos, mean probability)",
    "calibration_error": "ECE (videos, mean probability)",
    "pointing_accuracy": "pointing game",
    "pointing_chance": "pointing game, chance",
    "localisation_box_accuracy_30": "boxes, IoU of 0.3 or more",
    "localisation_box_accuracy_50": "boxes, IoU of 0.5 or more",
    "localisation_box_accuracy_70": "boxes, IoU of 0.7 or more",
    "localisation_tube_iou": "tubes, mean IoU",
    "localisation_video_map_20": "video-mAP at IoU 0.2",
    "localisation_video_map_50": "video-mAP at IoU 0.5",
    "chance": "chance",
    "majority_class": "majority class (clips)",
    "majority_class_video": "majority class (videos)",
    "num_videos": "test videos",
    "num_groups": "test groups",
    "num_clips": "test clips",
    "num_frames": "test frames",
}
"""Metrics averaged over training runs, and their columns in results.csv."""


@dataclass(frozen=True)
class TrainingRun:
    """One model trained with one seed and tested on one fold, or the fusion of such models."""

    model: str
    fold: int
    seed: int
    metrics: Mapping[str, Any]
    """Metrics from `evaluate_model`; a model may lack some."""
    videos: pd.DataFrame
    """Its videos.parquet; only `video`, `group` and `correct` are used."""
    maps: pd.DataFrame | None = None
    """Its maps.parquet; None for a model without attention."""
    fusion: Mapping[str, Any] | None = None
    """Its fusion.json; None for a single model."""


@dataclass(frozen=True)
class Summary:
    """One model's metrics over all its training runs."""

    model: str
    num_training_runs: int
    mean: dict[str, float]
    standard_deviation: dict[str, float]
    """Sample SD over training runs; empty if there is only one."""
    intervals: dict[str, list[float]]
    """95 % CIs of a single training run; empty if there are several."""


@dataclass(frozen=True)
class Pair:
    """Two models compared on the test videos of their common folds."""

    first: str
    second: str
    num_videos: int
    num_groups: int
    difference: float
    """Video accuracy (mode) of the first minus that of the second."""
    interval: list[float]
    """95 % CI of the difference over groups."""
    test: str
    p_value: float
    p_holm: float
    """Holm-adjusted for the number of pairs."""


def summarise(runs: Sequence[TrainingRun]) -> list[Summary]:
    """Return each model's mean and sample SD over its training runs, of every metric that all of them have."""
    return [_summary(model, own) for model, own in _by_model(runs).items()]


def compare(runs: Sequence[TrainingRun], params: EvaluateParams) -> list[Pair]:
    """Compare every two models with a common fold, by a paired test over videos.

    A video's correctness is averaged over seeds and folds first. Seeds are therefore fixed: the test is about other groups of
    videos, not about other seeds.
    """
    group_of = pd.concat([run.videos[["video", "group"]] for run in runs]).drop_duplicates("video").set_index("video")["group"]
    shares = {model: _shares_correct(own) for model, own in _by_model(runs).items()}
    pairs = []
    for first, second in combinations(shares, 2):
        both = pd.concat({first: shares[first], second: shares[second]}, axis=1, join="inner")
        if len(both):
            by_video = both.groupby("video").mean()
            pairs.append(_pair(first, second, by_video, group_of[by_video.index].to_numpy(), params))
    adjusted = holm([pair.p_value for pair in pairs])
    return [replace(pair, p_holm=p_holm) for pair, p_holm in zip(pairs, adjusted, strict=True)]


def _by_model(runs: Iterable[TrainingRun]) -> dict[str, list[TrainingRun]]:
    by_model: dict[str, list[TrainingRun]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run)
    return by_model


def _summary(model: str, runs: Sequence[TrainingRun]) -> Summary:
    rows = [_flat(run.metrics) for run in runs]
    values = {name: [row[name] for row in rows] for name in COLUMNS if all(name in row for row in rows)}
    is_one = len(runs) == 1
    return Summary(
        model=model,
        num_training_runs=len(runs),
        mean={name: mean(column) for name, column in values.items()},
        standard_deviation={} if is_one else {name: stdev(column) for name, column in values.items()},
        intervals=dict(runs[0].metrics["intervals"]) if is_one else {},
    )


def _flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return a model's numeric metrics, those of the pointing game and of boxes prefixed by `pointing_` or `localisation_`."""
    nested = {
        f"{group}_{name}": value for group in ("pointing", "localisation") for name, value in metrics.get(group, {}).items()
    }
    return {name: value for name, value in {**metrics, **nested}.items() if name in COLUMNS and value is not None}


def _shares_correct(runs: Iterable[TrainingRun]) -> pd.Series:
    """Return the share of a model's seeds that are correct (mode), by (fold, video)."""
    tables = [run.videos[["video", "correct"]].assign(fold=run.fold) for run in runs]
    return pd.concat(tables).groupby(["fold", "video"])["correct"].mean()


def _pair(first: str, second: str, shares: pd.DataFrame, group_V: np.ndarray, params: EvaluateParams) -> Pair:
    difference_V = (shares[first] - shares[second]).to_numpy()
    test, p_value = paired_test(difference_V, group_V, flips=params.resamples, seed=params.seed)
    [interval] = ratio_intervals(difference_V[:, None], np.ones((len(difference_V), 1)), group_V)
    num_groups = len(set(group_V))
    return Pair(
        first, second, len(difference_V), num_groups, float(difference_V.mean()), interval, test, p_value, p_holm=p_value
    )
