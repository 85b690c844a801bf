"""The page's charts as data: what `charts.js` draws with Chart.js, and the same numbers as a table."""

# N videos, B bins, C classes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.artifacts import layout

RELIABILITY_BINS = 10


@dataclass(frozen=True)
class Series:
    """One line of a chart, or one bar of each group."""

    name: str
    values: Sequence[float | None]
    """One for each place on the chart's axis; None where nothing is known."""
    colour: int
    """1 to 6, of tokens.css."""
    line: str = "solid"
    """Or `dashed`, `dotted`, `points`: the lines of a chart can be told apart without their colours."""


@dataclass(frozen=True)
class Chart:
    """What is drawn; values are fractions if `percent`."""

    kind: str
    """`line` or `bars`."""
    title: str
    """No two charts of a page have the same."""
    axis: str
    """What the places are."""
    places: Sequence[Any]
    unit: str
    """What the values are."""
    series: Sequence[Series]
    percent: bool = False


def learning_curves(history: Sequence[Mapping[str, Any]], model: str) -> list[Chart]:
    """Return loss and frame accuracy of the training and the validation split against the epoch; none without epochs."""
    return [_learning_curve(history, model, quantity) for quantity in ("loss", "frame_accuracy")] if history else []


def _learning_curve(history: Sequence[Mapping[str, Any]], model: str, quantity: str) -> Chart:
    train, val = ([row[f"{split}_{quantity}"] for row in history] for split in ("train", "val"))
    return Chart(
        kind="line",
        title=f"{model}: {quantity.replace('_', ' ')} by epoch",
        axis="epoch",
        places=[row["epoch"] for row in history],
        unit=quantity.replace("_", " "),
        series=[Series("train", train, 2, "dashed"), Series("val", val, 1)],
        percent=quantity.endswith("accuracy"),
    )


def class_bars(tables: Mapping[str, pd.DataFrame]) -> Chart:
    """Return the share of each class's clips that each model recognises, from the models' `per_class.csv`."""
    classes = next(iter(tables.values()))["class"].tolist()
    return Chart(
        kind="bars",
        title="Clips recognised, by class and model",
        axis="class",
        places=classes,
        unit="clips recognised",
        series=[
            Series(model, _known(table["recall"].to_numpy(np.float64)), 1 + number % 6)
            for number, (model, table) in enumerate(tables.items())
        ],
        percent=True,
    )


def reliability(evaluations: Mapping[str, Path]) -> Chart:
    """Return how often each model is right about the test videos of which it is so and so sure, by mean probability."""
    edges_B = np.linspace(0, 1, RELIABILITY_BINS + 1)
    centres_B = (edges_B[:-1] + edges_B[1:]) / 2
    models = [
        Series(model, _known(_accuracy_by_confidence(pd.read_parquet(folder / layout.VIDEOS))), 1 + number % 5, "points")
        for number, (model, folder) in enumerate(evaluations.items())
    ]
    return Chart(
        kind="line",
        title="How sure the models are, and how often right",
        axis="confidence, %",
        places=[round(100 * centre) for centre in centres_B.tolist()],
        unit="videos right",
        series=[*models, Series("as sure as right", [round(centre, 3) for centre in centres_B.tolist()], 6, "dotted")],
        percent=True,
    )


def _accuracy_by_confidence(videos: pd.DataFrame) -> np.ndarray:
    """Return the accuracy of each bin of confidence, (B,), NaN where it holds no video; bins have their upper edge."""
    confidence_N = videos["confidence_by_mean"].to_numpy(np.float64)
    bin_N = np.clip(np.ceil(confidence_N * RELIABILITY_BINS).astype(np.int64) - 1, 0, RELIABILITY_BINS - 1)
    right_B = np.bincount(bin_N, weights=videos["correct_by_mean"].to_numpy(np.float64), minlength=RELIABILITY_BINS)
    count_B = np.bincount(bin_N, minlength=RELIABILITY_BINS)
    return np.divide(right_B, count_B, out=np.full(RELIABILITY_BINS, np.nan), where=count_B > 0)


def _known(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 4) for value in values.tolist()]
