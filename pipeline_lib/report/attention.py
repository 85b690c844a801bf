"""Evaluation of the attention maps as tables and curves, from `maps.json` and the claims of `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_lib.artifacts import layout
from pipeline_lib.report.charts import Chart, Series
from pipeline_lib.report.contents import ModelReport

CONTROLS = {
    "uniform": "uniform",
    "centre": "centre",
    "grad_cam": "Grad-CAM",
    "flow": "optical flow",
    "oracle": "best box of whole cells",
}
"""The control maps, uniform attention and a Gaussian at the centre of the frame, the other maps, and the oracle for boxes."""

QUESTIONS = {
    ("conv_alstm", "alstm"): "Does ConvALSTM attend better than ALSTM, as the article claims?",
    ("motion_conv_alstm", "conv_alstm"): "Does ConvALSTM attend better when motion guides it, as VideoLSTM claims?",
    ("motion_alstm", "alstm"): "Does ALSTM attend better when motion guides it?",
}
"""What the claims about two models answer."""

TITLES = {"pointing": "Pointing game"}
"""Titles of measures on the page where they differ from those in `maps.json`, whose bytes are part of a content key."""


@dataclass(frozen=True)
class MapsReport:
    """The attention section; without measures, `missing` says why."""

    models: Sequence[str]
    measures: Sequence[Mapping[str, Any]]
    """name, title, unit, better, and `by_model`: one a model, or None; each {model, interval, uniform, centre}."""
    curves: Mapping[str, Sequence[Chart]]
    """Deletion and insertion curves by model; fusions have none."""
    classes: Mapping[str, Sequence[Mapping[str, Any]]]
    """Per-class measures by model."""
    claims: Mapping[str, Sequence[Mapping[str, Any]]]
    """Claims by question."""
    boxes: Mapping[str, int] | None
    """Numbers of `videos` and `frames` with boxes, of `frames_with_several` and `frames_without`; None without boxes."""
    missing: str | None


def gather_maps(models: Sequence[ModelReport], results: Mapping[str, Any]) -> MapsReport:
    """Collect the measures of all models with attention from their `maps.json`."""
    read = {model.title: maps for model in models if (maps := _read_maps(model))}
    found = {_titled(title, maps["kind"]): maps for title, maps in read.items()}
    names = dict.fromkeys(name for maps in found.values() for name in maps["measures"])
    return MapsReport(
        models=list(found),
        measures=[_measure(name, found) for name in names],
        curves={title: _curves(title, maps["curves"]) for title, maps in found.items() if maps["curves"]},
        classes={title: maps["classes"] for title, maps in found.items()},
        claims=_by_question(results.get("attention_claims", [])),
        boxes=next((maps["boxes"] for maps in found.values() if "boxes" in maps), None),
        missing=None if found else _explain_absence(models),
    )


def _titled(model: str, kind: str) -> str:
    """Return a model's title, which says if its map is not attention."""
    return model if kind == "attention" else f"{model} ({CONTROLS[kind]})"


def _by_question(claims: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    answers: dict[str, list[dict[str, Any]]] = {}
    for claim in claims:
        question = QUESTIONS[claim["first"], claim["second"]]
        answers.setdefault(question, []).append({**claim, "title": _title(claim["measure"], claim["title"])})
    return answers


def _read_maps(model: ModelReport) -> dict[str, Any] | None:
    path = model.evaluation / layout.MAPS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _explain_absence(models: Sequence[ModelReport]) -> str:
    if any(model.heatmaps for model in models):
        return "This run did not evaluate its attention maps."
    return "None of this run\u2019s models has attention, so there are no maps to evaluate."


def _measure(name: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    values = [maps["measures"].get(name) for maps in found.values()]
    first = next(value for value in values if value)
    title = _title(name, first["title"])
    return {"name": name, "title": title, "unit": first["unit"], "better": first["better"], "by_model": values}


def _title(measure: str, written: str) -> str:
    """Return a measure's title on the page; a claim's is written as `<title>, less the uniform map's`."""
    return TITLES.get(measure, written.partition(",")[0])


def _curves(model: str, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Chart]:
    return [
        Chart(
            kind="line",
            title=f"{model}: {name}",
            axis="cells, %",
            ticks=[round(100 * fraction) for fraction in curve["fraction"]],
            unit="probability of the true class",
            series=[
                Series("model", curve["model"], 1),
                Series("random order", curve["uniform"], 2, "dashed"),
                Series("centre first", curve["centre"], 3, "dotted"),
            ],
            percent=True,
        )
        for name, curve in curves.items()
    ]
