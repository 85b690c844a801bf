"""The real thing: HMDB-51's own clips, split files and layout, and real surveillance videos with real weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from demo.rar import pack_collection, write_rar
from pipeline_lib.params import DEFAULT_MODELS, STAGES
from pipeline_lib.video.writing import VideoWriter

PROJECT = Path(__file__).parents[2]


def run(folder, values, *settings, until=None):
    from flows.har import har

    path = folder / "params.yaml"
    quiet = {"workspace": str(folder / "workspace"), "tracking": {"system_metrics": False}}
    path.write_text(yaml.safe_dump(quiet | values))
    return har(str(path), list(settings), until, [])


def split_names(file):
    return [line.split()[0] for line in file.read_text().splitlines()]


def clips_of(folder):
    return pd.read_parquet(next((folder / "workspace" / "artifacts" / "chunk").glob("*/clips.parquet")))


def test_two_hmdb51_clips_with_all_official_split_files(shared, tmp_path, prefect_server):
    data = shared / "data"
    fetch = {"kind": "folder", "videos": str(data / "hmdb51_clips"), "splits": str(data / "hmdb51_splits")}
    summary = run(tmp_path, {"fetch": fetch}, until="chunk")
    dataset = summary["dataset"]
    assert (dataset["classes"], dataset["videos"], dataset["quarantined"]) == (2, 2, 0)
    assert dataset["cut"]["missing"] == 6764
    clips = clips_of(tmp_path)
    # 408 and 74 frames at 30 fps are 204 and 37 at 15: seven clips and two, the last of each padded.
    assert Counter(clips["class_name"]) == {"brush_hair": 7, "climb_stairs": 2}
    assert set(clips.loc[clips["class_name"] == "brush_hair", "valid_frames"]) == {30, 24}
    assert (clips["class_name"] == clips["video"].str.split("/").str[0]).all()
    for class_name, rows in clips.groupby("class_name"):
        name = rows["video"].iloc[0].split("/")[1]
        lines = (data / "hmdb51_splits" / f"{class_name}_test_split1.txt").read_text().splitlines()
        official = {line.split()[0]: int(line.split()[1]) for line in lines}[name]
        assert set(rows["split"]) <= ({"train", "val"} if official == 1 else {"test"})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_surveillance_videos_with_real_weights_through_every_stage(shared, tmp_path, prefect_server):
    data = shared / "data" / "fight_surv"
    weights = shared / "weights" / "squeezenet1_1_imagenet_features.pth"
    values = {
        "fetch": {"kind": "folder", "videos": str(data / "videos"), "splits": str(data / "splits")},
        "features": {"backbone": "squeezenet1_1", "weights": str(weights), "grid": 7},
        "train": {"epochs": 3, "learning_rate": 1e-3, "alstm_units": 64, "conv_alstm_units": 16},
        "heatmaps": {"successes": 1, "failures": 1},
    }
    summary = run(tmp_path, values)
    assert summary["dataset"]["videos"] == 127
    assert summary["dataset"]["quarantined"] == 0
    videos = summary["dataset"]["cut"]["videos"]
    assert (videos["train"] + videos["val"], videos["test"]) == (88, 39)
    for row in summary["models"].values():
        assert row["num_videos"] == 39
        assert 0.3 < row["clip_accuracy"] <= 1  # 51 clips of two classes: far below chance would mean swapped labels


NUM_TRAIN, NUM_TEST, NUM_UNUSED = 3570, 1530, 1666
"""Videos that HMDB-51's first split files label 1, 2 and 0."""

SMALL: dict[str, Any] = {
    "chunk": {"frames": 10},
    "features": {"backbone": "squeezenet1_1", "image_size": 64, "grid": 2},
    "train": {"epochs": 1, "alstm_units": 64, "conv_alstm_units": 16},
    "heatmaps": {"side": 64, "successes": 2, "failures": 2, "gif_side": 32},
    "tracking": {"system_metrics": False},
}


def render_tiny(path: Path, number: int, num_frames: int) -> None:
    """Write a square in a colour of the class's own, over noise that is the class's own too."""
    generator = np.random.default_rng(number)
    noise, colour = generator.integers(90, 150, (24, 32, 3), dtype=np.uint8), generator.integers(0, 256, 3, dtype=np.uint8)
    with VideoWriter(path, width=32, height=24, fps=30) as writer:
        for frame in range(num_frames):
            picture, left = noise.copy(), frame % 24
            picture[8:16, left : left + 8] = colour
            writer.write(picture)


def pack_in_small(splits: Path, folder: Path) -> dict[str, str]:
    """Pack the names in HMDB-51's split files as it is packed, a rar of rars, with 8 to 40 frames in each video.

    Returns:
        The `fetch` parameters that name the two archives.
    """
    lengths = (8, 17, 28, 40)
    for number, file in enumerate(sorted(splits.glob("*_test_split1.txt"))):
        videos = folder / "rendered" / "videos" / file.name.removesuffix("_test_split1.txt")
        videos.mkdir(parents=True)
        for length in lengths:
            render_tiny(folder / f"{length}.mp4", number, length)
        for index, name in enumerate(split_names(file)):
            shutil.copy(folder / f"{lengths[index % len(lengths)]}.mp4", videos / name)
    archives = {"videos": folder / "hmdb51_org.rar", "splits": folder / "test_train_splits.rar"}
    pack_collection(folder / "rendered", archives["videos"])
    members = [(f"testTrainMulti_7030_splits/{file.name}", file) for file in sorted(splits.glob("*_test_split?.txt"))]
    write_rar(archives["splits"], members)
    shutil.rmtree(folder / "rendered")
    return {name: str(path) for name, path in archives.items()}


def run_command(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Run `har run` as a user does, with a Prefect server of its own, and return its summary."""
    params, summary = folder / "params.yaml", folder / "summary.json"
    params.write_text(yaml.safe_dump({"workspace": str(folder / "workspace")} | values))
    command = [sys.executable, "-m", "flows.cli", "run", str(params), "--summary", str(summary)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads(summary.read_text(encoding="utf-8"))


def check_results(summary: dict[str, Any], num_test: int) -> None:
    """Check that five models, the linear reference and both controls were scored on all test videos, and compared."""
    results = summary["results"]
    assert list(summary["models"]) == list(DEFAULT_MODELS)
    assert [row["model"] for row in results["models"]] == [*DEFAULT_MODELS, "logistic_regression"]
    assert {row["num_videos"] for row in summary["models"].values()} == {num_test}
    assert {"permuted_labels", "metadata"} <= results["controls"].keys()
    assert len(results["pairs"]) == 15
    assert results["attention_claims"]
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert all(name.replace("_", " ") in page for name in DEFAULT_MODELS)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_hmdb51_at_full_size_as_tiny_videos_through_every_stage(shared, tmp_path, record_property):
    """All 6766 names and all split files, from a rar of rars to the report, with real weights; then all of it again."""
    weights = shared / "weights" / "squeezenet1_1_imagenet_features.pth"
    archives = pack_in_small(shared / "data" / "hmdb51_splits", tmp_path)
    features = SMALL["features"] | {"weights": str(weights)}
    values = SMALL | {"fetch": {"kind": "hmdb51"} | archives, "features": features}
    summary, again = (run_command(tmp_path, values) for _ in range(2))
    record_property("seconds of each stage", {stage: round(row["seconds"]) for stage, row in summary["stages"].items()})
    dataset, videos = summary["dataset"], summary["dataset"]["cut"]["videos"]
    assert (dataset["classes"], dataset["videos"], dataset["quarantined"]) == (51, 6766, 0)
    assert (videos["train"] + videos["val"], videos["test"], videos["unused"]) == (NUM_TRAIN, NUM_TEST, NUM_UNUSED)
    assert dataset["cut"]["missing"] == 0
    made = [stage for stage in STAGES if stage not in ("finetune", "sweep")]
    assert {stage: row["cache"] for stage, row in summary["stages"].items()} == dict.fromkeys(made, "miss")
    check_results(summary, NUM_TEST)
    assert {stage: row["cache"] for stage, row in again["stages"].items()} == dict.fromkeys(made, "hit") | {"report": "miss"}
    assert again["results"] == summary["results"]
