"""The real thing: HMDB-51's own clips, split files and layout, and real surveillance videos with real weights."""

from __future__ import annotations

import shutil
from collections import Counter

import pandas as pd
import pytest
import yaml

from pipeline_lib.fetch.rar import pack_collection, write_rar
from tests.e2e.conftest import render_video


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
        assert set(rows["part"]) <= ({"train", "val"} if official == 1 else {"test"})


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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hmdb51_at_full_size_in_names_and_counts(shared, tmp_path, prefect_server):
    """All 6766 names as tiny videos, packed as HMDB-51 is, through fetch to chunk."""
    splits = shared / "data" / "hmdb51_splits"
    files = sorted(splits.glob("*_test_split1.txt"))
    names = {file.name.removesuffix("_test_split1.txt"): split_names(file) for file in files}
    render_video(tmp_path / "tiny.mp4", (200, 40, 40), num_frames=8, seed=0)
    for class_name, videos in names.items():
        folder = tmp_path / "rendered" / "videos" / class_name
        folder.mkdir(parents=True)
        for video in videos:
            shutil.copy(tmp_path / "tiny.mp4", folder / video)
    pack_collection(tmp_path / "rendered", tmp_path / "hmdb51_org.rar")
    members = [(f"testTrainMulti_7030_splits/{file.name}", file) for file in sorted(splits.glob("*_test_split?.txt"))]
    write_rar(tmp_path / "test_train_splits.rar", members)
    shutil.rmtree(tmp_path / "rendered")
    archives = {"videos": str(tmp_path / "hmdb51_org.rar"), "splits": str(tmp_path / "test_train_splits.rar")}
    summary = run(tmp_path, {"fetch": {"kind": "hmdb51"} | archives}, until="chunk")
    dataset = summary["dataset"]
    assert (dataset["classes"], dataset["videos"], dataset["quarantined"]) == (51, 6766, 0)
    assert dataset["cut"]["videos"]["train"] + dataset["cut"]["videos"]["val"] == 3570
    assert dataset["cut"]["videos"]["test"] == 1530
    assert dataset["cut"]["videos"]["unused"] == 1666
    assert dataset["cut"]["missing"] == 0
    again = run(tmp_path, {"fetch": {"kind": "hmdb51"} | archives}, until="chunk")
    assert {row["cache"] for row in again["stages"].values()} == {"hit"}
