"""The page's charts as data, for Chart.js (`charts.js`) and for the tables below them."""

# N videos, B bins

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
    """One line, or one bar of each group."""

    name: str
    values: Sequence[float | None]
    """One for each tick of the axis; None where unknown."""
    colour: int
    """Number of a series colour in tokens.css, 1 to 6."""
    line: str = "solid"
    """`solid`, `dashed`, `dotted` or `points`; tells lines apart without colour."""


@dataclass(frozen=True)
class Chart:
    """A line or bar chart; values are fractions if `percent`."""

    kind: str
    """`line` or `bars`."""
    title: str
    """Unique on the page."""
    axis: str
    """Title of the axis."""
    ticks: Sequence[Any]
    unit: str
    """Quantity that the values are."""
    series: Sequence[Series]
    percent: bool = False


def learning_curves(history: Sequence[Mapping[str, Any]], model: str) -> list[Chart]:
    """Return the loss and the frame accuracy on the train and val splits by epoch; no chart without epochs."""
    return [_learning_curve(history, model, quantity) for quantity in ("loss", "frame_accuracy")] if history else []


def _learning_curve(history: Sequence[Mapping[str, Any]], model: str, quantity: str) -> Chart:
    train, val = ([row[f"{split}_{quantity}"] for row in history] for split in ("train", "val"))
    return Chart(
        kind="line",
        title=f"{model}: {quantity.replace('_', ' ')} by epoch",
        axis="epoch",
        ticks=[row["epoch"] for row in history],
        unit=quantity.replace("_", " "),
        series=[Series("train", train, 2, "dashed"), Series("val", val, 1)],
        percent=quantity.endswith("accuracy"),
    )


def class_bars(tables: Mapping[str, pd.DataFrame]) -> Chart:
    """Return each model's recall by class, over clips, from the models' `per_class.csv`."""
    classes = next(iter(tables.values()))["class"].tolist()
    return Chart(
        kind="bars",
        title="Recall by class and model",
        axis="class",
        ticks=classes,
        unit="recall",
        series=[
            Series(model, _known(table["recall"].to_numpy(np.float64)), 1 + number % 6)
            for number, (model, table) in enumerate(tables.items())
        ],
        percent=True,
    )


def reliability(evaluations: Mapping[str, Path]) -> Chart:
    """Return the reliability diagram: accuracy by confidence bin, a series a model, over test videos by mean vote."""
    centres_B = (np.arange(RELIABILITY_BINS) + 0.5) / RELIABILITY_BINS
    models = [
        Series(model, _known(_accuracy_by_confidence(pd.read_parquet(folder / layout.VIDEOS))), 1 + number % 5, "points")
        for number, (model, folder) in enumerate(evaluations.items())
    ]
    return Chart(
        kind="line",
        title="Reliability diagram",
        axis="confidence, %",
        ticks=[round(100 * centre) for centre in centres_B.tolist()],
        unit="video accuracy",
        series=[*models, Series("perfect calibration", [round(centre, 3) for centre in centres_B.tolist()], 6, "dotted")],
        percent=True,
    )


def _accuracy_by_confidence(videos: pd.DataFrame) -> np.ndarray:
    """Return accuracy_B by confidence bin, NaN where a bin is empty; bins include their upper edge."""
    bin_N = pd.cut(videos["confidence_by_mean"], np.linspace(0, 1, RELIABILITY_BINS + 1).tolist(), include_lowest=True)
    return videos["correct_by_mean"].groupby(bin_N, observed=False).mean().to_numpy(np.float64)


def _known(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 4) for value in values.tolist()]
