"""What a report shows: the run, its models and its searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class ModelReport:
    """One model of the run."""

    name: str
    label: str
    """The name, and in a run of several folds or seeds which of them this is."""
    metrics: Mapping[str, Any]
    """The evaluation's `metrics.json`."""
    history: Sequence[Mapping[str, Any]]
    """The training's `history.json`: one mapping an epoch."""
    evaluation: Path
    """Folder that the evaluate stage filled."""
    heatmaps: Path | None
    """Folder with `heatmaps.json` and the clips it names; None of a model without attention."""

    @property
    def title(self) -> str:
        """The label as the page writes it."""
        return self.label.replace("_", " ")


@dataclass(frozen=True)
class SweepReport:
    """A search for one model's hyper-parameters."""

    model: str
    counts: Mapping[str, Any]
    """Of trials, and validation accuracy of the default and of the best."""
    best: Mapping[str, Any]
    """The best hyper-parameters found."""
    importance: Mapping[str, Any]
    """The search's `importance.json`: each hyper-parameter's share of the differences between trials, or why there is none."""


@dataclass(frozen=True)
class RunReport:
    """What the page shows."""

    title: str
    summary: Mapping[str, Any]
    """`dataset`, `stages`, `models`, `results` and `mlflow`, as `har run --summary` writes them."""
    params: Mapping[str, Any]
    """All parameters, section by section, as JSON types."""
    quarantined: pd.DataFrame
    """One row a lost video: video, reason, stderr."""
    models: Sequence[ModelReport]
    tools: Mapping[str, str]
    """Versions of the tools that shaped the run."""
    sweeps: Sequence[SweepReport] = ()
    best_params: Mapping[str, Any] | None = None
    """All parameters with what the searches found."""
    failures: Sequence[str] = ()
    """A line for each model, or other part of the run, that failed while the rest went on."""
