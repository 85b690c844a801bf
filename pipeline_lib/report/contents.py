"""Contents of a report: the run, its models and its hyper-parameter searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class ModelReport:
    """One model of the run, or one fusion of models."""

    name: str
    label: str
    """The name, with fold and seed if the run has several."""
    metrics: Mapping[str, Any]
    """The evaluation's `metrics.json`."""
    history: Sequence[Mapping[str, Any]]
    """The training's `history.json`: one mapping an epoch; empty for a fusion."""
    evaluation: Path
    """Folder of the evaluate stage's artifact."""
    heatmaps: Path | None
    """Folder of the heatmaps stage's artifact; None for a model without attention."""

    @property
    def title(self) -> str:
        """The label with spaces for underscores."""
        return self.label.replace("_", " ")


@dataclass(frozen=True)
class SweepReport:
    """The hyper-parameter search of one model."""

    model: str
    counts: Mapping[str, Any]
    """Number of trials, and validation accuracy of the default and the best one."""
    best: Mapping[str, Any]
    """The best hyper-parameters found."""
    importance: Mapping[str, Any]
    """The search's `importance.json`: importance by hyper-parameter, or a note on why there is none."""


@dataclass(frozen=True)
class RunReport:
    """Everything the page shows."""

    title: str
    summary: Mapping[str, Any]
    """`dataset`, `stages`, `models`, `results` and `mlflow`, as `har run --summary` writes them."""
    params: Mapping[str, Any]
    """All parameters, section by section, as JSON types."""
    quarantined: pd.DataFrame
    """One row a quarantined video: video, reason, stderr."""
    models: Sequence[ModelReport]
    tools: Mapping[str, str]
    """Versions of the tools that shaped the run."""
    sweeps: Sequence[SweepReport] = ()
    best_params: Mapping[str, Any] | None = None
    """All parameters, with the best hyper-parameters found."""
    failures: Sequence[str] = ()
    """One line a failed piece of work."""
