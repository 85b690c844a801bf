"""Print the tables of docs/results.md for a workspace's newest finished run: python docs/results_table.py WORKSPACE.

Markdown, in percent: each model and fusion with mean and standard deviation over its training runs (folds and seeds) and the
95 % interval over groups of all folds, the controls, and the paired tests.
"""

# V videos of all training runs, one after the other

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.artifacts import Artifact, Store, layout
from pipeline_lib.artifacts.workspace import locate_workspace, open_workspace
from pipeline_lib.errors import UserError
from pipeline_lib.evaluate.comparison import TrainingRun
from pipeline_lib.evaluate.intervals import accuracy_intervals, ratio_intervals
from pipeline_lib.evaluate.results import Controls, read_controls, read_training_run

SIGNIFICANT = 0.05

Counted = Callable[[TrainingRun], pd.DataFrame | None]
"""Returns a training run's videos with their `group`, and what is counted of them: `right` of `all`; None if it has none."""
Intervals = Callable[[np.ndarray, np.ndarray, np.ndarray], list[list[float]]]


@dataclass(frozen=True)
class Finished:
    """A finished run."""

    models: Sequence[TrainingRun]
    """Models and fusions, of every fold and seed."""
    controls: Sequence[Controls]
    results: Mapping[str, Any]
    """Its results.json."""

    @property
    def names(self) -> list[str]:
        """The models, without fusions, in the run's order."""
        return list(dict.fromkeys(run.model for run in self.models if not run.fusion))

    def of(self, name: str) -> list[TrainingRun]:
        """Return the training runs of a model, a fusion or a linear baseline."""
        linear = (run for controls in self.controls for run in controls.linear)
        return [run for run in (*self.models, *linear) if run.model == name]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workspace", type=locate_workspace)
    workspace = parser.parse_args().workspace
    try:
        with open_workspace(workspace) as store:
            sys.stdout.write("\n\n".join(tables(read_newest(store))) + "\n")
    except UserError as error:
        raise SystemExit(str(error)) from None


def read_newest(store: Store) -> Finished:
    """Read the newest comparison of models in a workspace, and the evaluations that it compares.

    Raises:
        UserError: there is none, or one of its evaluations is no longer there.
    """
    evaluations = list(store.artifacts("evaluate"))
    comparisons = [artifact for artifact in evaluations if "training_runs" in artifact.manifest.params]
    if not comparisons:
        raise UserError(f"{store.workspace}: no run has been evaluated there; run `har run PARAMS --until evaluate`")
    newest = max(comparisons, key=lambda artifact: artifact.manifest.created)
    by_content = {artifact.content_key: artifact for artifact in evaluations}

    def folder(name: str) -> Path:
        found = by_content.get(newest.manifest.inputs[name])
        if found is None:
            raise UserError(f"{store.workspace}: the evaluation of {name} is no longer there; run the pipeline again")
        return store.checkout(found)

    keys = [tuple(key) for key in newest.manifest.params["training_runs"]]
    return Finished(
        models=[read_training_run(folder(str(key)), *key) for key in keys],
        controls=[read_controls(folder(f"controls {fold}"), fold) for fold in _folds_with_controls(newest)],
        results=json.loads(store.file(newest, layout.RESULTS).read_text(encoding="utf-8")),
    )


def _folds_with_controls(comparison: Artifact) -> list[int]:
    return [int(name.removeprefix("controls ")) for name in comparison.manifest.inputs if name.startswith("controls ")]


def tables(run: Finished) -> Iterator[str]:
    """Yield a caption and each table as Markdown."""
    yield _caption(run)
    yield "Video accuracy by mode, %:\n\n" + _by_stream(run, by_mode)
    yield "Video accuracy by mean vote, %:\n\n" + _by_stream(run, by_mean_vote)
    if any(pointing(model) is not None for model in run.models):
        chance = mean(model.metrics["pointing"]["chance"] for model in run.models if model.metrics.get("pointing"))
        yield f"Pointing game, % of frames with boxes (chance {100 * chance:.1f}):\n\n" + _by_stream(run, pointing)
    if run.results["fusions"]:
        yield _fusions(run)
    yield _controls(run)
    yield _pairs(run)


def _caption(run: Finished) -> str:
    folds, seeds = (sorted({getattr(model, name) for model in run.models}) for name in ("fold", "seed"))
    videos = [len(next(model.videos for model in run.models if model.fold == fold)) for fold in folds]
    groups = pd.concat([model.videos["group"] for model in run.models]).nunique()
    return (
        f"Folds {', '.join(map(str, folds))}; seeds {', '.join(map(str, seeds))}; {' + '.join(map(str, videos))} test videos, "
        f"{groups} groups. Mean ± standard deviation over folds and seeds [95 % interval over groups]."
    )


def by_mode(run: TrainingRun) -> pd.DataFrame | None:
    """Count the videos whose most frequent prediction is right."""
    return _correct(run.videos, "correct")


def by_mean_vote(run: TrainingRun) -> pd.DataFrame | None:
    """Count the videos whose most probable class is right."""
    return _correct(run.videos, "correct_by_mean") if "correct_by_mean" in run.videos else None


def _correct(videos: pd.DataFrame, column: str) -> pd.DataFrame:
    return pd.DataFrame({"group": videos["group"], "right": videos[column].astype(float), "all": 1.0})


def pointing(run: TrainingRun) -> pd.DataFrame | None:
    """Count the frames whose strongest cell is on the actor, of the frames with boxes."""
    if run.maps is None or not run.metrics.get("pointing"):
        return None
    rows = run.maps[(run.maps["measure"] == "pointing") & (run.maps["map"] == "model")]
    return rows.rename(columns={"total": "right", "frames": "all"})[["group", "right", "all"]]


def estimate(runs: Sequence[TrainingRun], counted: Counted) -> str:
    """Return `mean ± SD [low, high]` in percent over training runs, which count equally; empty if one has nothing to count."""
    found = [counted(run) for run in runs]
    rows = [table for table in found if table is not None]
    if not rows or len(rows) < len(found):
        return ""
    values = [table["right"].sum() / table["all"].sum() for table in rows]
    weighed = pd.concat([table.assign(weight=1 / table["all"].sum()) for table in rows])
    right_V1, all_V1 = ((weighed[name] * weighed["weight"]).to_numpy()[:, None] for name in ("right", "all"))
    intervals: Intervals = ratio_intervals if counted is pointing else accuracy_intervals
    [interval] = intervals(right_V1, all_V1, weighed["group"].to_numpy())
    return _estimate(mean(values), stdev(values) if len(values) > 1 else None, interval)


def _estimate(value: float, deviation: float | None = None, interval: Sequence[float] | None = None) -> str:
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * value:.1f}{spread}" + (f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else "")


def _by_stream(run: Finished, counted: Counted) -> str:
    """Return a table with a row for each model and a column for each stream, or streams, that models read."""
    split = {name: name.partition("@") for name in run.names}
    streams = list(dict.fromkeys(stream for _, _, stream in split.values()))
    rows = {model: dict.fromkeys(streams, "-") for model, _, _ in split.values()}
    for name, (model, _, stream) in split.items():
        rows[model][stream] = estimate(run.of(name), counted) or "-"
    headings = [f"`@{stream}`" if stream else "default stream" for stream in streams]
    return markdown(["model", *headings], [[model, *cells.values()] for model, cells in rows.items()])


def _fusions(run: Finished) -> str:
    rows = [
        [
            f"`{fusion['fusion']}`",
            fusion["method"],
            ", ".join(fusion["members"]),
            estimate(run.of(fusion["fusion"]), by_mode),
            estimate(run.of(fusion["fusion"]), by_mean_vote),
            f"{_points(fusion)}, {fusion['best_member']}",
            _estimate(fusion["oracle_accuracy"]),
        ]
        for fusion in run.results["fusions"]
    ]
    headings = ["fusion", "method", "members", "videos (mode)", "videos (mean vote)", "less its best member", "either right"]
    return markdown(headings, rows)


def _controls(run: Finished) -> str:
    first = run.results["models"][0]["mean"]
    linear = dict.fromkeys(baseline.model for controls in run.controls for baseline in controls.linear)
    rows = [[name.replace("_", " "), estimate(run.of(name), by_mode)] for name in linear]
    if controls := run.results["controls"]:
        permuted, metadata = controls["permuted_labels"], controls["metadata"]
        rows.append(["permuted labels", _estimate(permuted["mean"], permuted["standard_deviation"])])
        rows.append(["**file metadata**", _estimate(metadata["mean"], metadata["standard_deviation"])])
        rows += [[f"file metadata, fold {fold.fold}", _metadata(fold)] for fold in run.controls]
    rows.append(["majority class", _estimate(first["majority_class_video"])])
    rows.append(["chance", _estimate(first["chance"])])
    return markdown(["control or baseline", "videos (mode)"], rows)


def _metadata(controls: Controls) -> str:
    metadata = controls.scores["metadata"]
    return _estimate(metadata["video_accuracy"], interval=metadata["intervals"]["video_accuracy"])


def _pairs(run: Finished) -> str:
    """Return the significant pairs, those of one model on two streams, and those of a fusion and a member."""
    members = {fusion["fusion"]: fusion["members"] for fusion in run.results["fusions"]}

    def belongs_together(first: str, second: str) -> bool:
        same_model = first.partition("@")[0] == second.partition("@")[0]
        return same_model or second in members.get(first, ()) or first in members.get(second, ())

    pairs = run.results["pairs"]
    shown = [pair for pair in pairs if pair["p_holm"] < SIGNIFICANT or belongs_together(pair["first"], pair["second"])]
    rows = [[pair["first"], pair["second"], _points(pair), f"{pair['p_value']:.2g}"] for pair in shown]
    number = sum(pair["p_holm"] < SIGNIFICANT for pair in pairs)
    return f"Paired tests: {number} of {len(pairs)} pairs are significant after Holm.\n\n" + markdown(
        ["first", "second", "first less second, points [95 %], p after Holm", "p alone"], rows
    )


def _points(pair: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in pair["interval"])
    difference = round(100 * pair["difference"], 1) + 0.0  # no -0.0
    return f"{difference:+.1f} [{low:.0f}, {high:.0f}], p = {pair['p_holm']:.2g}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
