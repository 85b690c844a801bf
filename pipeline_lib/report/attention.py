"""Whether the maps can be trusted: what `maps.json` and the claims of `results.json` say, as tables and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_lib.artifacts import layout
from pipeline_lib.report.charts import Chart, Series
from pipeline_lib.report.model import ModelReport

CONTROLS = {"uniform": "even", "centre": "centre"}
"""What an attention must do better than: everywhere alike, and a Gaussian in the middle."""


@dataclass(frozen=True)
class MapsReport:
    """The section on maps; without measures, `missing` says why."""

    models: Sequence[str]
    measures: Sequence[Mapping[str, Any]]
    """title, unit, better, and `cells`: one a model, or None; each {model, interval, uniform, centre}."""
    curves: Mapping[str, Sequence[Chart]]
    """Each model's."""
    classes: Mapping[str, Sequence[Mapping[str, Any]]]
    """Each model's measures class by class."""
    claims: Sequence[Mapping[str, Any]]
    missing: str | None


def gather_maps(models: Sequence[ModelReport], results: Mapping[str, Any]) -> MapsReport:
    """Return what is known of the models' maps, from each evaluation's `maps.json`."""
    found = {model.title: read for model in models if (read := _read_maps(model))}
    names = dict.fromkeys(name for maps in found.values() for name in maps["measures"])
    return MapsReport(
        models=list(found),
        measures=[_measure(name, found) for name in names],
        curves={title: _curves(title, maps["curves"]) for title, maps in found.items()},
        classes={title: maps["classes"] for title, maps in found.items()},
        claims=results.get("attention_claims", []),
        missing=None if found else _explain_absence(models),
    )


def _read_maps(model: ModelReport) -> dict[str, Any] | None:
    path = model.evaluation / layout.MAPS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _explain_absence(models: Sequence[ModelReport]) -> str:
    if any(model.heatmaps for model in models):
        return "This run did not measure its maps."
    return "None of this run\u2019s models has attention, so there is no map to check."


def _measure(name: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    cells = [maps["measures"].get(name) for maps in found.values()]
    told = next(cell for cell in cells if cell)
    return {"name": name, "title": told["title"], "unit": told["unit"], "better": told["better"], "cells": cells}


def _curves(model: str, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Chart]:
    return [
        Chart(
            kind="line",
            title=f"{model}: {name}",
            axis="cells, %",
            places=[round(100 * fraction) for fraction in curve["fraction"]],
            unit="probability of the true class",
            series=[
                Series("its own map", curve["model"], 1),
                Series("cells at random", curve["uniform"], 2, "dashed"),
                Series("centre first", curve["centre"], 3, "dotted"),
            ],
            percent=True,
        )
        for name, curve in curves.items()
    ]
