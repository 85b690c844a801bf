"""Writes the page of a run: one self-contained `index.html`, with the heatmap videos beside it in `media/`."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from pipeline_lib.overview import pairs_overview, results_overview
from pipeline_lib.report.charts import learning_curve

TEMPLATES = Path(__file__).parent
PAGE = "index.html"
BEST = "best.yaml"
MEDIA = "media"


@dataclass(frozen=True)
class ModelReport:
    """One model of the run."""

    name: str
    label: str
    """The name, and in a run of several splits or seeds which of them this is."""
    metrics: Mapping[str, Any]
    """The evaluation's `metrics.json`."""
    history: Sequence[Mapping[str, Any]]
    """The training's `history.json`: one mapping an epoch."""
    evaluation: Path
    """Folder with `confusion.png` and `per_class.csv`."""
    heatmaps: Path | None
    """Folder with `heatmaps.json` and the videos it names; None of a model without attention."""


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
    """`dataset`, `stages`, `results` and `mlflow`, as `har run --summary` writes them."""
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


def write_report(directory: Path, run: RunReport) -> dict[str, int]:
    """Fill an existing folder with the page and the videos it plays, and `best.yaml` if hyper-parameters were searched for.

    Everything but the videos is inside the page, posters included, so that it can be read wherever it is moved to.

    Returns:
        The number of heatmap videos shown and the size of the page in bytes.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration}
    models = [_describe_model(model, directory) for model in run.models]
    page = environment.get_template("page.html.j2").render(
        run=run,
        models=models,
        drawn=[model for model in models if model["heatmaps"]],
        results=results_overview(run.summary["results"]),
        pairs=pairs_overview(run.summary["results"]),
        sweeps=run.sweeps,
        params_yaml=_to_yaml(run.params),
        quarantined=run.quarantined.to_dict("records"),
        total_seconds=sum(stage["seconds"] for stage in run.summary["stages"].values()),
    )
    (directory / PAGE).write_text(page, encoding="utf-8")
    if run.best_params:
        (directory / BEST).write_text(_to_yaml(run.best_params), encoding="utf-8")
    num_videos = sum(len(model["heatmaps"]["clips"]) for model in models if model["heatmaps"])
    return {"videos": num_videos, "page_bytes": len(page.encode())}


def _to_yaml(params: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True)


def percent(fraction: float | None) -> str:
    """Return a fraction as people read it: 0.8751 is `87.5 %`; an unknown one is a dash."""
    if fraction is None or math.isnan(fraction):
        return "\u2013"
    return f"{100 * fraction:.1f}\u202f%"


def duration(seconds: float) -> str:
    """Return seconds as people read them: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, whole_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {whole_minutes} min"
    return f"{minutes} min {whole_seconds} s" if minutes else f"{whole_seconds} s"


def _describe_model(model: ModelReport, directory: Path) -> dict[str, Any]:
    """Return what the template shows of a model; copies its heatmap videos."""
    # A class may be called `nan` or `007`; only an empty cell is an unknown number.
    table = model.evaluation / "per_class.csv"
    per_class = pd.read_csv(table, dtype={"class": str}, keep_default_na=False, na_values=[""])
    return {
        "name": model.name,
        "label": model.label,
        "metrics": model.metrics,
        "pointing": model.metrics.get("pointing"),
        "curves": _draw_curves(model),
        "training": _describe_training(model.history),
        "confusion": _data_url(model.evaluation / "confusion.png", "image/png"),
        "per_class": {"columns": list(per_class.columns), "rows": per_class.to_numpy().tolist()},
        "heatmaps": _describe_heatmaps(model.name, model.heatmaps, directory) if model.heatmaps else None,
    }


def _describe_heatmaps(model: str, folder: Path, directory: Path) -> dict[str, Any]:
    heatmaps = json.loads((folder / "heatmaps.json").read_text(encoding="utf-8"))
    return heatmaps | {"clips": [_describe_clip(clip, model, folder, directory) for clip in heatmaps["clips"]]}


def _draw_curves(model: ModelReport) -> list[Markup]:
    if not model.history:
        return []
    quantities = ("loss", "frame_accuracy")
    return [learning_curve(model.history, quantity, f"{quantity} of {model.name} by epoch") for quantity in quantities]


def _describe_training(history: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the curves show."""
    if not history:
        return ""
    best = min(history, key=lambda row: row["val_calibrated_loss"])
    return (
        f"{len(history)} epochs; weights kept of epoch {best['epoch']}, whose calibrated validation loss is lowest ("
        f"{best['val_calibrated_loss']:.3f}), "
        f"with {percent(best['val_frame_accuracy'])} of the validation frames right"
    )


def _describe_clip(clip: Mapping[str, Any], model: str, heatmaps: Path, directory: Path) -> dict[str, Any]:
    """Copy a clip's video into the report and return what the gallery shows of it."""
    media = directory / MEDIA / model
    media.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(heatmaps / clip["mp4"], media / clip["mp4"])
    frames = zip(clip["frame_predicted"], clip["frame_confidence"], strict=True)
    bars = [{"right": label == clip["class_name"], "label": label, "confidence": sure} for label, sure in frames]
    return {
        **clip,
        "url": f"{MEDIA}/{model}/{clip['mp4']}",
        "poster": _data_url(heatmaps / clip["poster"], "image/jpeg"),
        "frames": bars,
        "num_right": sum(bar["right"] for bar in bars),
    }


def _data_url(path: Path, media_type: str) -> str:
    """Return a file as an address that holds its content."""
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
