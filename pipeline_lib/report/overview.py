"""Results tables as text, shared by the terminal and the report page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_lib.report.numbers import spread

HEADINGS = {
    "frame_accuracy": "frame acc.",
    "clip_accuracy": "clip acc.",
    "video_accuracy": "video acc.",
    "video_accuracy_by_mean": "mean vote",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5",
    "calibration_error": "ECE",
    "pointing_accuracy": "pointing game",
}
"""The metrics shown and their column headings."""

WITH_INTERVAL = ("frame_accuracy", "clip_accuracy", "video_accuracy")
"""Metrics shown with their interval; results.json has the other intervals too."""


@dataclass(frozen=True)
class Overview:
    """A table of text."""

    title: str
    headings: list[str]
    models: list[list[str]]
    """One row a model: its name, then one cell a heading."""
    references: list[list[str]]
    """Rows of controls and baselines."""


def results_overview(results: Mapping[str, Any]) -> Overview:
    """Return every model's test metrics in percent, then controls and baselines, from `results.json`."""
    models = results["models"]
    first = models[0]
    num_runs = first["num_training_runs"]
    shown = "95 % CI over groups" if num_runs == 1 else f"\u00b1 SD over {num_runs} folds and seeds"
    return Overview(
        title=f"Test split: {_size(first['mean'])}, in percent [{shown}]",
        headings=list(HEADINGS.values()),
        models=[[_name(row["model"]), *(_metric(row, metric) for metric in HEADINGS)] for row in models],
        references=[[name, *(cells.get(metric, "") for metric in HEADINGS)] for name, cells in _references(results)],
    )


def _size(counts: Mapping[str, float]) -> str:
    return f"{counts['num_videos']:.0f} videos of {counts['num_groups']:.0f} groups"


def pairs_overview(results: Mapping[str, Any]) -> Overview:
    """Return each pair's difference in video accuracy on the same videos, from `results.json`."""
    pairs = {(pair["first"], pair["second"]): pair for pair in results["pairs"]}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    return Overview(
        title="Row \u2212 column, video accuracy (pp) [Holm-adjusted p]",
        headings=[_name(name) for name in names[1:]],
        models=[[_name(name), *(_difference(pairs.get((name, other))) for other in names[1:])] for name in names[:-1]],
        references=[],
    )


def fusions_overview(results: Mapping[str, Any]) -> Overview:
    """Return each fusion's weights, its gain over its best member, and how its members' errors overlap, from `results.json`."""
    return Overview(
        title="Fusions: video accuracy of the members together, in percent; gain over the best member (pp) [Holm-adjusted p]",
        headings=["method", "weights", "best member", "gain", "either right", "all wrong", "overlap of errors"],
        models=[_fusion_row(fusion) for fusion in results.get("fusions", [])],
        references=[],
    )


def _fusion_row(fusion: Mapping[str, Any]) -> list[str]:
    is_fallback = "*" if fusion["notes"] else ""
    jaccard = fusion["error_jaccard"]
    return [
        _name(fusion["fusion"]),
        fusion["method"] + is_fallback,
        "" if fusion["method"] == "svm" else ":".join(f"{weight:.2f}" for weight in fusion["weights"]),
        _name(fusion["best_member"]),
        _difference(fusion),
        estimate(fusion["oracle_accuracy"]),
        estimate(fusion["all_wrong"]),
        "" if jaccard is None else estimate(jaccard),
    ]


def _name(model: str) -> str:
    return model.replace("_", " ")


def _metric(row: Mapping[str, Any], metric: str) -> str:
    if metric not in row["mean"]:
        return ""
    interval = row["intervals"].get(metric) if metric in WITH_INTERVAL else None
    return estimate(row["mean"][metric], deviation=row["standard_deviation"].get(metric), interval=interval)


def estimate(value: float, *, deviation: float | None = None, interval: Sequence[float] | None = None) -> str:
    """Return a fraction in percent with its spread if known: `81.2`, `81.2 ± 2.0`, `81.2 [76, 85]`."""
    return f"{100 * value:.1f} {spread(deviation, interval)}".rstrip()


def _references(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of the controls, the majority class and chance."""
    first, controls = results["models"][0]["mean"], results["controls"]
    if controls:
        permuted, metadata = controls["permuted_labels"], controls["metadata"]
        accuracy = estimate(permuted["mean"], deviation=permuted["standard_deviation"])
        yield "permuted labels", {"video_accuracy": accuracy}
        accuracy = estimate(metadata["mean"], deviation=metadata["standard_deviation"], interval=metadata["interval"])
        yield "file metadata", {"video_accuracy": accuracy}
    majority = {"clip_accuracy": first["majority_class"], "video_accuracy": first["majority_class_video"]}
    yield "majority class", {metric: estimate(value) for metric, value in majority.items()}
    chance = dict.fromkeys(("frame_accuracy", "clip_accuracy", "video_accuracy", "video_accuracy_by_mean"), first["chance"])
    if "pointing_chance" in first:
        chance["pointing_accuracy"] = first["pointing_chance"]
    yield "chance", {metric: estimate(value) for metric, value in chance.items()}


def _difference(pair: Mapping[str, Any] | None) -> str:
    if not pair:
        return ""
    points = round(100 * pair["difference"], 1) + 0.0  # no -0.0
    return f"{points:+.1f} [{pair['p_holm']:.2g}]"
