"""Measure the attention maps of a model, and those of the controls, over the test split.

`maps.parquet` holds totals per video, for paired comparisons of models. `maps.json` holds the resulting scores.
"""

# N clips, T frames of a clip, I = K * K cells, V videos, F points of a curve

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.evaluate.box_scores import BoxScores
from pipeline_lib.evaluate.localisation import ORACLE
from pipeline_lib.evaluate.masking import Curves
from pipeline_lib.evaluate.measures import (
    CONTROLS,
    FLOW,
    MEASURES,
    MODEL,
    UNIFORM,
    Measure,
    centre_bias,
    control_maps,
    drift,
    entropy,
)
from pipeline_lib.evaluate.pointing import Actor, mass_in_box, points_at_actor
from pipeline_lib.evaluate.totals import add_up, interval_of_mean, mean_of_totals, subtract_totals
from pipeline_lib.training.voting import valid_mask

ATTENTION = "attention"


@dataclass(frozen=True)
class ScoredMaps:
    """All measures of one model's attention maps."""

    test: pd.DataFrame
    """The clips of the test split."""
    classes: Sequence[str]
    grid: int
    totals: pd.DataFrame
    """Columns map, measure, video, class_name, group, and the `total` over the video's counted `frames`."""
    curves: Curves | None
    """None for the maps of a fusion, whose models did not run again."""
    boxes: BoxScores | None = None
    """None without boxes."""
    kind: str = ATTENTION
    """What the model's map is: its attention, or the name of an explainer."""

    def pointing(self) -> dict[str, Any]:
        """Return the metric `pointing` with `accuracy`, `chance` and `num_frames`; an empty dictionary without boxes."""
        rows = self.totals[self.totals["measure"] == "pointing"]
        if rows.empty:
            return {}
        model, uniform = (rows[rows["map"] == name] for name in (MODEL, UNIFORM))
        scores = {"accuracy": mean_of_totals(model), "chance": mean_of_totals(uniform)}
        return {"pointing": scores | {"num_frames": int(model["frames"].sum())}}

    def localisation(self) -> dict[str, Any]:
        """Return the metric `localisation`: the model's value of each measure of boxes; an empty dictionary without boxes."""
        if not self.boxes:
            return {}
        own = self.boxes.totals[self.boxes.totals["map"] == MODEL]
        means = {name: mean_of_totals(rows) for name, rows in own.groupby("measure", sort=False)}
        return {"localisation": means | {name: row[MODEL] for name, row in self.boxes.video_map.items()}}


def map_totals(
    test: pd.DataFrame, attention_NTI: np.ndarray, actor: Actor | None, others: Mapping[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """Return each video's totals for the model's map, each control and `others` (see `ScoredMaps.totals`)."""
    controls = control_maps(round(attention_NTI.shape[2] ** 0.5))
    static = {name: np.broadcast_to(map_KK.ravel(), attention_NTI.shape) for name, map_KK in controls.items()}
    every_map = {MODEL: attention_NTI.astype(np.float64)} | static | dict(others or {})
    values = [
        add_up(test, name, *value)
        for name, maps_NTI in every_map.items()
        if name != FLOW
        for value in _frame_values(test, maps_NTI)
    ]
    if actor:
        values += [add_up(test, name, *value) for name, maps in every_map.items() for value in _box_values(test, maps, actor)]
    return pd.concat(values, ignore_index=True)


def curve_totals(masked: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """Return `map_totals` for deletion and insertion, with one value per clip."""
    ones_N1 = np.ones((len(masked), 1))
    tables = [add_up(masked, *key, area_N[:, None], ones_N1) for key, area_N in curves.areas().items()]
    return pd.concat(tables, ignore_index=True)


def _frame_values(test: pd.DataFrame, maps_NTI: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, the value_NT and the mask of frames to count, of each measure of maps alone."""
    valid_NT = valid_mask(test["valid_frames"].to_numpy(), maps_NTI.shape[1])
    yield "entropy", entropy(maps_NTI), valid_NT
    yield "centre_bias", centre_bias(maps_NTI), valid_NT
    yield "drift", drift(maps_NTI), valid_NT & (np.arange(maps_NTI.shape[1]) > 0)


def _box_values(test: pd.DataFrame, maps_NTI: np.ndarray, actor: Actor) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the same of each measure of maps and boxes."""
    has_box_NT = np.zeros(maps_NTI.shape[:2], dtype=bool)
    has_box_NT[actor.clip_F, actor.time_F] = True
    for name, score in (("pointing", points_at_actor), ("mass_in_box", mass_in_box)):
        value_NT = np.zeros(has_box_NT.shape)
        value_NT[actor.clip_F, actor.time_F] = score(maps_NTI[actor.clip_F, actor.time_F], actor)
        yield name, value_NT, has_box_NT


def write_maps(directory: Path, scored: ScoredMaps) -> None:
    """Write maps.parquet and maps.json, and with boxes tubes.parquet (see `Localisation.tubes`).

    maps.json holds:

    - `kind`: `attention`, or the explainer whose map stands for it in a model without attention
    - `num_clips`, `num_groups`, `num_masked` (videos in the curves, 0 without curves) and `grid`
    - `measures`: for each one the model's value with its 95 % interval over groups, and the values of the controls and of
      other maps (`grad_cam`, `flow`). If a direction is better, also the `differences` between the model and each of these on
      the same videos, with intervals. Measures of boxes also have the `oracle`'s value and the `thresholds` of the maps
    - `classes`: the model's measures for each class
    - `curves`: the true class's mean probability at each fraction of masked cells; empty without curves
    - `boxes`: `Localisation.counts`; absent without boxes
    """
    boxes = scored.boxes
    totals = pd.concat([scored.totals, boxes.totals], ignore_index=True) if boxes else scored.totals
    totals.to_parquet(directory / layout.MAPS_TABLE, index=False)
    by_measure = {name: totals[totals["measure"] == name] for name in MEASURES}
    known = {name: rows for name, rows in by_measure.items() if len(rows)}
    curves = scored.curves
    content = {
        "kind": scored.kind,
        "num_clips": len(scored.test),
        "num_groups": int(scored.test["group"].nunique()),
        "num_masked": len(curves.probability_NF[MODEL, "deletion"]) if curves else 0,
        "grid": scored.grid,
        "measures": _measure_rows(known, boxes),
        "classes": _class_rows(scored, known),
        "curves": {measure: _describe_curves(measure, curves) for measure in ("deletion", "insertion")} if curves else {},
    }
    if boxes:
        content["boxes"] = dict(boxes.localisation.counts)
        boxes.localisation.tubes.to_parquet(directory / layout.TUBES, index=False)
    (directory / layout.MAPS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _measure_rows(known: Mapping[str, pd.DataFrame], boxes: BoxScores | None) -> dict[str, dict[str, Any]]:
    """Return the entry of each measure in the order of `MEASURES`."""
    rows = {name: _describe(MEASURES[name], totals) for name, totals in known.items()}
    if boxes:
        for (map_name, name), threshold in boxes.localisation.thresholds.items():
            rows[name].setdefault("thresholds", {})[map_name] = threshold
        rows |= {name: asdict(MEASURES[name]) | dict(row) for name, row in boxes.video_map.items()}
    return {name: rows[name] for name in MEASURES if name in rows}


def _describe(measure: Measure, totals: pd.DataFrame) -> dict[str, Any]:
    by_map = {str(name): rows for name, rows in totals.groupby("map", sort=False)}
    row = asdict(measure) | {name: mean_of_totals(rows) for name, rows in by_map.items()}
    row["interval"] = interval_of_mean(by_map[MODEL])
    if measure.better:
        differences = {
            name: subtract_totals(by_map[MODEL], rows) for name, rows in by_map.items() if name not in (MODEL, ORACLE)
        }
        row["differences"] = {
            name: {"difference": mean_of_totals(rows), "interval": interval_of_mean(rows)} for name, rows in differences.items()
        }
    return row


def _class_rows(scored: ScoredMaps, known: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return the model's measures for each class, None where no video of the class has the measure."""
    clips = scored.test["class_name"].value_counts()
    rows = [{"class": name, "clips": int(clips.get(name, 0))} for name in scored.classes]
    for measure, totals in known.items():
        own = totals[totals["map"] == MODEL].groupby("class_name")[["total", "frames"]].sum()
        value_of = (own["total"] / own["frames"]).to_dict()
        for row in rows:
            row[measure] = value_of.get(row["class"])
    return rows


def _describe_curves(measure: str, curves: Curves) -> dict[str, list[float]]:
    means = {name: curves.probability_NF[name, measure].mean(axis=0).tolist() for name in (MODEL, *CONTROLS)}
    return {"fraction": curves.fraction_F.tolist()} | means
