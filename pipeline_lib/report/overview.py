"""The results as people read them: the same two tables on the terminal and on the report's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HEADINGS = {
    "frame_accuracy": "frames",
    "clip_accuracy": "clips",
    "video_accuracy": "videos",
    "video_accuracy_by_mean": "by mean",
    "macro_f1": "macro F1",
    "top5_accuracy": "top 5",
    "calibration_error": "calib.",
    "pointing_accuracy": "on actor",
}
"""The metrics shown, and how they are headed."""

WITH_INTERVAL = ("frame_accuracy", "clip_accuracy", "video_accuracy")
"""Where an interval is shown beside a number; results.json has the others too."""


@dataclass(frozen=True)
class Overview:
    """A table of text."""

    title: str
    headings: list[str]
    models: list[list[str]]
    """A row a model: its name, then a run a heading."""
    references: list[list[str]]
    """Rows of what needs no model."""


def results_overview(results: Mapping[str, Any]) -> Overview:
    """Return every model's metrics in percent, and below them what no model is needed for, from `results.json`."""
    models = results["models"]
    first = models[0]
    spread = (
        "95 % interval over groups"
        if first["num_training_runs"] == 1
        else f"± deviation over {first['num_training_runs']} folds and seeds"
    )
    return Overview(
        title=f"Test split: {_tested(first['mean'])}, in percent [{spread}]",
        headings=list(HEADINGS.values()),
        models=[[_name(row["model"]), *(_cell(row, metric) for metric in HEADINGS)] for row in models],
        references=[[name, *(cells.get(metric, "") for metric in HEADINGS)] for name, cells in _references(results)],
    )


def _tested(counts: Mapping[str, float]) -> str:
    return f"{counts['num_videos']:.0f} videos of {counts['num_groups']:.0f} groups"


def pairs_overview(results: Mapping[str, Any]) -> Overview:
    """Return how far each model is ahead of each other on the same videos, from `results.json`."""
    pairs = {(pair["first"], pair["second"]): pair for pair in results["pairs"]}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    return Overview(
        title="Row less column on the same videos, points of video accuracy [p of a paired test, after Holm]",
        headings=[_name(name) for name in names[1:]],
        models=[[_name(name), *(_difference(pairs.get((name, other))) for other in names[1:])] for name in names[:-1]],
        references=[],
    )


def _name(model: str) -> str:
    return model.replace("_", " ")


def _cell(row: Mapping[str, Any], metric: str) -> str:
    if metric not in row["mean"]:
        return ""
    interval = row["intervals"].get(metric) if metric in WITH_INTERVAL else None
    return percent(row["mean"][metric], deviation=row["standard_deviation"].get(metric), interval=interval)


def percent(value: float, *, deviation: float | None = None, interval: list[float] | None = None) -> str:
    """Return a fraction in percent with what is known of its spread: `81.2`, `81.2 ± 2.0`, `81.2 [76, 85]`."""
    text = f"{100 * value:.1f}"
    if deviation is not None:
        return f"{text} ± {100 * deviation:.1f}"
    return f"{text} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else text


def _references(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the controls, the commonest class, and chance."""
    first, controls = results["models"][0]["mean"], results["controls"]
    if controls:
        permuted, metadata = controls["permuted_labels"], controls["metadata"]
        yield (
            "labels permuted in sources",
            {"video_accuracy": percent(permuted["mean"], deviation=permuted["standard_deviation"])},
        )
        text = percent(metadata["mean"], deviation=metadata["standard_deviation"], interval=metadata["interval"])
        yield "file metadata alone", {"video_accuracy": text}
    commonest = {"clip_accuracy": first["majority_class"], "video_accuracy": first["majority_class_video"]}
    yield "commonest class", {metric: percent(value) for metric, value in commonest.items()}
    chance = dict.fromkeys(("frame_accuracy", "clip_accuracy", "video_accuracy", "video_accuracy_by_mean"), first["chance"])
    if "pointing_chance" in first:
        chance["pointing_accuracy"] = first["pointing_chance"]
    yield "chance", {metric: percent(value) for metric, value in chance.items()}


def _difference(pair: Mapping[str, Any] | None) -> str:
    return f"{100 * pair['difference']:+.1f} [{pair['p_holm']:.2g}]" if pair else ""
