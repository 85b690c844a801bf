"""Write the report page of a run: one self-contained `index.html`.

MLflow shows the page in a sandbox without relative URLs or storage, so scripts, styles, charts and clips are inlined. Clips
are base64 in inert elements at the end of the page and are decoded when they come into view.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from pipeline_lib.artifacts import layout
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.report.attention import CONTROLS, gather_maps
from pipeline_lib.report.charts import Chart, class_bars, learning_curves, reliability
from pipeline_lib.report.contents import ModelReport, RunReport
from pipeline_lib.report.findings import findings
from pipeline_lib.report.gallery import OUTCOMES, Gallery, gather_gallery
from pipeline_lib.report.numbers import decimal, duration, headlines, percent
from pipeline_lib.report.overview import fusions_overview, pairs_overview, results_overview
from pipeline_lib.report.player import ASSETS, player_style

STYLES = ("tokens.css", "player.css", "style.css")
CHART_LIBRARY = "django/static/chartkick/Chart.bundle.js"
"""Chart.js 4, inside the package `chartkick`."""
SCRIPTS = ("player.js", "report.js", "gallery.js", "matrix.js", "charts.js")
FIRST_CLIPS = 12
"""Clips shown at first, and added by each press of the gallery's button."""


def write_report(directory: Path, run: RunReport) -> dict[str, int]:
    """Write the page into an existing folder, and `best.yaml` after a hyper-parameter search.

    Returns:
        The number of clips shown and the size of the page in bytes.
    """
    results = run.summary["results"]
    gallery, maps = gather_gallery(run.models), gather_maps(run.models, results)
    tables = {model.title: _read_classes(model) for model in run.models}
    bars, reliable = class_bars(tables), reliability({model.title: model.evaluation for model in run.models})
    curves = {model.title: learning_curves(model.history, model.title) for model in run.models}
    charts = [bars, reliable, *chain(*curves.values(), *maps.curves.values())]
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            results=results_overview(results),
            pairs=pairs_overview(results),
            fusions=fusions_overview(results),
            fusion_notes={fusion["fusion"]: fusion["notes"] for fusion in results.get("fusions", []) if fusion["notes"]},
            findings=findings(
                results,
                models=run.params["train"]["models"],
                streams=list(run.params["features"]["streams"] or ["rgb"]),
                attending={model.name for model in run.models if model.heatmaps},
            ),
            headlines=headlines(results, {model.name for model in run.models}),
            reference=results["models"][0]["mean"],
            gallery=gallery,
            outcomes=OUTCOMES,
            first_clips=FIRST_CLIPS,
            maps=maps,
            controls=CONTROLS,
            tables={title: {"columns": list(table), "rows": table.to_numpy().tolist()} for title, table in tables.items()},
            class_bars=bars,
            reliability=reliable,
            curves=curves,
            training={model.title: _describe_training(model.history) for model in run.models},
            params_yaml=_to_yaml(run.params),
            best_yaml=_to_yaml(run.best_params) if run.best_params else None,
            quarantined=run.quarantined.to_dict("records"),
            run_ids=_run_ids(run.summary),
            styles=[_asset(name) for name in STYLES],
            scripts=[_asset(name) for name in SCRIPTS],
            chart_library=Markup(resources.files("chartkick").joinpath(CHART_LIBRARY).read_text(encoding="utf-8")),
            data=_embed(_page_data(run, gallery, tables, charts)),
        )
    )
    (directory / layout.PAGE).write_text(page, encoding="utf-8")
    if run.best_params:
        (directory / layout.BEST_PARAMS).write_text(_to_yaml(run.best_params), encoding="utf-8")
    return {"clips": len(gallery.clips), "page_bytes": len(page.encode())}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "decimal": decimal, "base64": _base64}
    environment.tests["containing"] = lambda text, substring: substring in text
    return environment


def _page_data(run: RunReport, gallery: Gallery, tables: Mapping[str, pd.DataFrame], charts: Sequence[Chart]) -> dict[str, Any]:
    """Return the data of the page's scripts."""
    params = HeatmapsParams.model_validate(run.params["heatmaps"])
    return {
        "style": player_style(gallery.grid, params) if gallery.grid else None,
        "clips": [clip.data for clip in gallery.clips],
        "first_clips": FIRST_CLIPS,
        "matrices": [_confusion(model, tables[model.title]["class"].tolist()) for model in run.models],
        "charts": {chart.title: asdict(chart) for chart in charts},
    }


def _confusion(model: ModelReport, classes: Sequence[str]) -> dict[str, Any]:
    """Return the non-zero cells of the confusion matrix over clips, as [true class, predicted class, count]."""
    predictions = pd.read_parquet(model.evaluation / layout.PREDICTIONS)
    number = {name: index for index, name in enumerate(classes)}
    counts = Counter(zip(predictions["class_name"], predictions["predicted"], strict=True))
    cells = sorted([number[true], number[predicted], count] for (true, predicted), count in counts.items())
    return {"model": model.title, "classes": list(classes), "cells": cells}


def _read_classes(model: ModelReport) -> pd.DataFrame:
    """Read `per_class.csv`. A class may be called `nan` or `007`; only an empty field is a missing number."""
    return pd.read_csv(model.evaluation / layout.PER_CLASS, dtype={"class": str}, keep_default_na=False, na_values=[""])


def _run_ids(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the MLflow run id of each model, or of each of its training runs if it has several."""
    ids = {}
    for name, model in summary.get("models", {}).items():
        for run in model.get("training_runs", [model]):
            suffix = f" fold {run['fold']} seed {run['seed']}" if "training_runs" in model else ""
            ids[f"{name.replace('_', ' ')}{suffix}"] = run["mlflow_run_id"]
    return ids


def _describe_training(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of epochs and the metrics of the checkpoint's epoch, in a sentence."""
    if not history:
        return "Not trained: a fusion of the probabilities of other models."
    best = min(history, key=lambda row: row["val_calibrated_loss"])
    return (
        f"{len(history)} epochs. The checkpoint is from epoch {best['epoch']}, which has the lowest calibrated validation loss "
        f"({best['val_calibrated_loss']:.3f}); its validation frame accuracy is {percent(best['val_frame_accuracy'])}."
    )


def _to_yaml(params: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True)


def _asset(name: str) -> Markup:
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


def _embed(data: Any) -> Markup:
    """Return JSON that cannot close its script element."""
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c"))


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
