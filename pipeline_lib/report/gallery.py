"""The gallery: every clip selected for any model, once, with the predictions and attention maps of all models."""

# T frames of a clip, K grid side

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
from PIL import Image

from pipeline_lib.artifacts import layout
from pipeline_lib.report.contents import ModelReport
from pipeline_lib.report.player import ClipModel, ClipTube, describe_clip

OUTCOMES = {"mixed": "models disagree", "wrong": "all wrong", "right": "all correct"}
"""Outcomes of a clip over all models, in the order of the gallery."""


@dataclass(frozen=True)
class Shown:
    """One clip of the gallery."""

    data: Mapping[str, Any]
    """The clip for `player.js`; `id` is the clip's in the dataset, `video` and `still` are ids of page elements."""
    outcome: str
    chosen_as: Sequence[str]
    """`success of alstm`, ..."""
    video: Path
    still: Path


@dataclass(frozen=True)
class Gallery:
    """The clips and the rules of their selection."""

    clips: Sequence[Shown] = ()
    grid: int | None = None
    rules: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """Outcomes without clips, and why."""

    @property
    def has_boxes(self) -> bool:
        """Whether boxes of actors are known in any clip."""
        return any(clip.data["truth"] for clip in self.clips)

    @property
    def has_importance(self) -> bool:
        """Whether a model attends over time."""
        return any(model["importance"] for clip in self.clips for model in clip.data["models"])


@dataclass(frozen=True)
class _Choice:
    """A selected clip: its entry in the first model's list, and every model it was selected for."""

    entry: Mapping[str, Any]
    folder: Path
    chosen_as: list[str]


def gather_gallery(models: Sequence[ModelReport]) -> Gallery:
    """Collect the clips selected for any model, with all models' predictions and attention maps.

    Selections come from `heatmaps.json`, predictions and maps from `predictions.parquet` and `attention.h5` of each evaluation.
    """
    listed = {model.title: _read_heatmaps(model.heatmaps) for model in models if model.heatmaps}
    if not listed:
        return Gallery()
    choices = _unite(models, listed)
    made = [dict(_read_model(model, choices)) for model in models]
    of_clip = {clip: [by_clip[clip] for by_clip in made if clip in by_clip] for clip in choices}
    outcome = {clip: _outcome(choices[clip].entry["class_name"], of_clip[clip]) for clip in choices}
    ordered = sorted(choices, key=lambda clip: (list(OUTCOMES).index(outcome[clip]), choices[clip].entry["class_name"], clip))
    heatmaps, grid = next(iter(listed.values())), max(each["grid"] for each in listed.values())
    return Gallery(
        clips=[
            _show(number, choices[clip], of_clip[clip], outcome[clip], heatmaps["fps"], grid)
            for number, clip in enumerate(ordered)
        ],
        grid=grid,
        rules=heatmaps["rules"],
        notes=[f"{title}: {note}" for title, heatmaps in listed.items() for note in heatmaps["notes"]],
    )


def _read_heatmaps(folder: Path) -> dict[str, Any]:
    return json.loads((folder / layout.HEATMAPS).read_text(encoding="utf-8"))


def _unite(models: Sequence[ModelReport], listed: Mapping[str, Mapping[str, Any]]) -> dict[str, _Choice]:
    """Return each selected clip once."""
    choices: dict[str, _Choice] = {}
    for model in models:
        for entry in listed[model.title]["clips"] if model.heatmaps else ():
            assert model.heatmaps is not None
            choice = choices.setdefault(entry["clip"], _Choice(entry, model.heatmaps, []))
            choice.chosen_as.append(f"{entry['outcome']} of {model.title}")
    return choices


def _read_model(model: ModelReport, clips: Collection[str]) -> Iterator[tuple[str, ClipModel]]:
    """Yield a model's predictions and attention maps of each clip in its test split."""
    predictions = pd.read_parquet(model.evaluation / layout.PREDICTIONS)
    tubes = _read_tubes(model, clips)
    with h5py.File(model.evaluation / layout.ATTENTION, "r") as file:
        row_of = {clip: row for row, clip in enumerate(file["clip"].asstr()[:])}
        for row in predictions[predictions["clip"].isin(clips)].to_dict("records"):
            valid = row_of[row["clip"]], slice(row["valid_frames"])
            maps_TKK = file["attention"][valid] if model.heatmaps else None
            importance_T = file["importance"][valid] if "importance" in file else None
            frames = list(row["frame_predicted"]), list(row["frame_confidence"])
            verdict = row["predicted"], row["confidence"]
            yield row["clip"], ClipModel(model.title, maps_TKK, *frames, *verdict, tubes.get(row["clip"]), importance_T)


def _read_tubes(model: ModelReport, clips: Collection[str]) -> dict[str, ClipTube]:
    """Return a model's tubes in the clips that have boxes of actors."""
    path = model.evaluation / layout.TUBES
    if not model.heatmaps or not path.exists():
        return {}
    tubes = pd.read_parquet(path, filters=[("clip", "in", list(clips))])
    return {
        str(clip): ClipTube(rows[["x0", "y0", "x1", "y1"]].to_numpy(), rows["iou"].to_numpy(), list(rows["truth"]))
        for clip, rows in tubes.groupby("clip", sort=False)
    }


def _outcome(label: str, models: Sequence[ClipModel]) -> str:
    right = {model.verdict == label for model in models}
    return "mixed" if len(right) > 1 else "right" if right == {True} else "wrong"


def _show(number: int, choice: _Choice, models: Sequence[ClipModel], outcome: str, fps: float, grid: int) -> Shown:
    video, still = (choice.folder / choice.entry[name] for name in ("plain", "still"))
    with Image.open(still) as picture:
        size = picture.size
    data = describe_clip(
        choice.entry["clip"],
        label=choice.entry["class_name"],
        video=f"video-{number}",
        still=f"still-{number}",
        size=size,
        fps=fps,
        grid=grid,
        models=models,
    )
    return Shown(data, outcome, choice.chosen_as, video, still)
