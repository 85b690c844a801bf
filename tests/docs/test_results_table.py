"""The tables of docs/results.md from a finished workspace: the numbers that evaluation wrote, and intervals over all folds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from docs.results_table import Finished, by_mode, estimate, pointing, read_newest, tables
from pipeline_lib.artifacts import Recipe, Store, layout
from pipeline_lib.evaluate.intervals import accuracy_interval, accuracy_intervals, ratio_intervals
from pipeline_lib.evaluate.results import read_controls, read_training_run, write_results
from pipeline_lib.params import EvaluateParams

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = ("mean_pool", "conv_alstm", "conv_alstm@motion", "both")
FOLDS = {1: 24, 2: 40}
"""Videos by fold."""
RIGHT = {"mean_pool": 0.3, "conv_alstm": 0.5, "conv_alstm@motion": 0.9, "both": 0.8}


def write_videos(folder: Path, fold: int, chance_right: float, seed: int) -> dict[str, Any]:
    """Write a model's predictions of a fold's videos, four to a group, and return their metrics."""
    number = FOLDS[fold]
    right = np.random.default_rng([seed, fold]).random(number) < chance_right
    groups = [f"{fold} {video // 4}" for video in range(number)]
    table = pd.DataFrame({"video": [f"{fold} {video}" for video in range(number)], "class_name": "c", "group": groups})
    table.assign(predicted="c", confidence=0.5, correct=right, correct_by_mean=~right).to_parquet(folder / layout.VIDEOS)
    interval = accuracy_interval(right, np.array(groups))
    return {"video_accuracy": float(right.mean()), "intervals": {"video_accuracy": interval}}


def write_pointing(folder: Path, fold: int) -> dict[str, Any]:
    """Write the totals of the pointing game, a frame more for each video, and return the metric."""
    frames = np.arange(FOLDS[fold]) + 1
    table = pd.DataFrame({"video": [f"{fold} {n}" for n in range(len(frames))], "frames": frames, "class_name": "c"})
    table["group"] = [f"{fold} {n // 4}" for n in range(len(frames))]
    maps = {"model": frames / 2 * (frames % 2), "uniform": frames / 4}
    rows = [table.assign(map=name, measure="pointing", total=total) for name, total in maps.items()]
    pd.concat(rows).to_parquet(folder / layout.MAPS_TABLE)
    accuracy, chance = (total.sum() / frames.sum() for total in maps.values())
    return {"pointing": {"accuracy": accuracy, "chance": chance, "num_frames": int(frames.sum())}}


def write_model(folder: Path, model: str, fold: int) -> dict[str, Any]:
    metrics = write_videos(folder, fold, RIGHT[model], MODELS.index(model)) | {"chance": 0.2, "majority_class_video": 0.25}
    metrics |= {} if model == "mean_pool" else write_pointing(folder, fold)
    (folder / layout.METRICS).write_text(json.dumps(metrics))
    if model == "both":
        fusion = {
            "members": ["conv_alstm", "conv_alstm@motion"],
            "method": "mean",
            "fitted": {"weights": [0.5, 0.5], "note": None},
        }
        overlap = {"oracle_accuracy": 0.95, "oracle_interval": [0.9, 1], "all_wrong": 0.05, "error_jaccard": 0.1}
        (folder / layout.FUSION).write_text(json.dumps(fusion | {"overlap": overlap}))
    return {}


def write_controls(folder: Path, fold: int) -> dict[str, Any]:
    scores = {
        "logistic_regression": write_videos(folder, fold, 0.6, 9),
        "permuted_labels": {"mean": 0.2, "standard_deviation": 0.1, "highest": 0.3, "labels_changed": 0.8},
        "metadata": {"video_accuracy": 0.5 + fold / 10, "intervals": {"video_accuracy": [0.3, 0.7]}},
    }
    (folder / layout.CONTROLS).write_text(json.dumps(scores))
    return {}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with the evaluations of four models in two folds, compared as the evaluate stage does."""
    store = Store(tmp_path_factory.mktemp("run"))
    keys = [(model, fold, 0) for model in MODELS for fold in FOLDS]
    made = {
        str(key): store.make(Recipe("evaluate", "1", {"key": str(key)}), lambda folder, key=key: write_model(folder, *key[:2]))
        for key in keys
    }
    controls = {
        f"controls {fold}": store.make(
            Recipe("evaluate", "1", {"c": fold}), lambda folder, fold=fold: write_controls(folder, fold)
        )
        for fold in FOLDS
    }
    runs = [read_training_run(made[str(key)].directory, *key) for key in keys]
    references = [read_controls(controls[f"controls {fold}"].directory, fold) for fold in FOLDS]
    inputs = {name: artifact.content_key for name, artifact in (made | controls).items()}
    recipe = Recipe("evaluate", "1", {"training_runs": [list(key) for key in keys]}, inputs)
    store.make(recipe, lambda folder: write_results(folder, runs, references, EvaluateParams()))
    store.close()
    return store.workspace


@pytest.fixture
def finished(workspace: Path) -> Iterator[Finished]:
    store = Store(workspace)
    yield read_newest(store)
    store.close()


def test_one_run_has_the_interval_that_evaluation_wrote(finished: Finished) -> None:
    for run in finished.models:
        low, high = run.metrics["intervals"]["video_accuracy"]
        assert estimate([run], by_mode) == f"{100 * run.metrics['video_accuracy']:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def test_folds_count_equally_and_groups_are_those_of_all_folds(finished: Finished) -> None:
    summaries = {row["model"]: row for row in finished.results["models"]}
    for model in MODELS:
        runs = finished.of(model)
        weights = np.concatenate([np.full((len(run.videos), 1), 1 / len(run.videos)) for run in runs])
        videos = pd.concat([run.videos for run in runs])
        [(low, high)] = accuracy_intervals(videos[["correct"]].to_numpy() * weights, weights, videos["group"].to_numpy())
        mean, deviation = (summaries[model][name]["video_accuracy"] for name in ("mean", "standard_deviation"))
        assert estimate(runs, by_mode) == f"{100 * mean:.1f} ± {100 * deviation:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def test_pointing_is_that_of_the_metrics(finished: Finished) -> None:
    [run, _] = finished.of("conv_alstm")
    assert run.maps is not None
    rows = run.maps[run.maps["map"] == "model"]
    [(low, high)] = ratio_intervals(rows[["total"]].to_numpy(), rows[["frames"]].to_numpy(float), rows["group"].to_numpy())
    accuracy = run.metrics["pointing"]["accuracy"]
    assert estimate([run], pointing) == f"{100 * accuracy:.1f} [{100 * low:.0f}, {100 * high:.0f}]"
    assert estimate(finished.of("mean_pool"), pointing) == ""


def test_the_command_prints_models_by_stream_fusions_controls_and_tests(workspace: Path, finished: Finished) -> None:
    command = [sys.executable, str(REPOSITORY / "docs" / "results_table.py"), str(workspace)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)}).stdout
    assert printed == "\n\n".join(tables(finished)) + "\n"
    assert printed.startswith("Folds 1, 2; seeds 0; 24 + 40 test videos, 16 groups.")
    assert "| model | default stream | `@motion` |" in printed
    lines = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in printed.splitlines()}
    assert lines["`both`"][:2] == ["mean", "conv_alstm, conv_alstm@motion"]
    assert lines["**file metadata**"] == ["65.0 ± 7.1 |"]
    assert lines["file metadata, fold 2"] == ["70.0 [30, 70] |"]
    assert lines["permuted labels"] == ["20.0 ± 0.0 |"]
    assert lines["chance"] == ["20.0 |"]
    assert "(chance 25.0):" in printed
    assert "mean_pool | conv_alstm@motion | -" in printed  # significant
    assert "conv_alstm | both |" in printed  # a fusion and a member
    assert all(line.count("|") == printed.splitlines()[index - 1].count("|") for index, line in enumerate(printed.splitlines())
               if line.startswith("|") and printed.splitlines()[index - 1].startswith("|"))  # fmt: skip


def test_a_workspace_without_results_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no run has been evaluated there"):
        read_newest(store)
    store.close()
