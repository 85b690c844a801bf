"""Raw videos through `har predict` and the library give what the pipeline's evaluation found."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.video.reading import count_frames
from tasks.mlflow import tracking
from tasks.mlflow.loading import open_predictor


@pytest.fixture(scope="module")
def evaluations(finished) -> dict[str, Path]:
    """Return each model's evaluate artifact."""
    pipeline, summary = finished
    artifacts = pipeline.workspace / "artifacts"
    found = {}
    for model, row in summary["models"].items():
        for metrics in artifacts.glob("evaluate/*/metrics.json"):
            if json.loads(metrics.read_text()).items() <= row.items():
                found[model] = metrics.parent
    assert set(found) == {"alstm", "conv_alstm", "mean_pool"}
    return found


@pytest.fixture(scope="module")
def opened(finished):
    pipeline, summary = finished  # whose workspace other tests have run in: the newest version may be another run's
    tracking.open_tracking(pipeline.workspace)
    return open_predictor(summary["mlflow"]["parent_run_id"], Workspace(folder=pipeline.workspace), siblings=True)


def frames_of(evaluation: Path, video: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Return a row a frame, and attention_TKK, of a video's clips in order."""
    clips = pd.read_parquet(evaluation / "predictions.parquet")
    clips = clips[clips["video"] == video].sort_values("clip")
    frames = clips[["frame_predicted", "frame_confidence"]].explode(["frame_predicted", "frame_confidence"])
    with h5py.File(evaluation / "attention.h5") as file:
        ids = list(file["clip"].asstr()[:])
        maps = [file["attention"][ids.index(row.clip)][: row.valid_frames] for row in clips.itertuples()]
    return frames, np.concatenate(maps)


def test_every_model_says_of_every_test_video_what_evaluation_found(finished, evaluations, opened):
    pipeline, _ = finished
    assert set(opened.predictor.models) == set(evaluations)
    names = pd.read_parquet(evaluations["alstm"] / "videos.parquet")["video"]
    for video in names:
        prediction = opened.predictor.predict(pipeline.collection / "videos" / video)
        for model, evaluation in evaluations.items():
            found = prediction.models[model]
            frames, attention_TKK = frames_of(evaluation, video)
            np.testing.assert_allclose(found.frame_confidence, frames["frame_confidence"].astype(float), atol=1e-4)
            assert found.frame_labels == frames["frame_predicted"].tolist()
            if found.attention_TKK is not None:
                np.testing.assert_allclose(found.attention_TKK, attention_TKK, atol=1e-4)
            videos = pd.read_parquet(evaluation / "videos.parquet").set_index("video")
            row = videos.loc[video]
            assert (found.label, found.label_by_mean) == (row["predicted"], row["predicted_by_mean"])
            assert found.confidence == pytest.approx(row["confidence"], abs=1e-4)
            assert found.confidence_by_mean == pytest.approx(row["confidence_by_mean"], abs=1e-4)


def test_the_command_says_the_same_and_writes_it_down(finished, evaluations, tmp_path):
    pipeline, summary = finished
    video = pd.read_parquet(evaluations["alstm"] / "videos.parquet")["video"][0]
    bad = tmp_path / "bad.mp4"
    bad.write_text("hello")
    output = tmp_path / "results"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "flows.cli",
        "predict",
        str(bad),
        str(pipeline.collection / "videos" / video),
    ]
    command += [
        "--model",
        summary["models"]["alstm"]["checkpoint"],
        "--workspace",
        str(pipeline.workspace),
        "--output",
        str(output),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False, env=environment)
    assert result.returncode == 1, result.stderr
    assert "bad.mp4" in result.stdout
    frames, _ = frames_of(evaluations["alstm"], video)
    with (output / "frames.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == frames["frame_predicted"].tolist()
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], frames["frame_confidence"].astype(float), atol=1e-4)
    refused, told = json.loads((output / "predictions.json").read_text(encoding="utf-8"))["videos"]
    assert (refused["video"], "label" in refused) == (str(bad), False)
    assert refused["error"]
    assert told["label"] == pd.read_parquet(evaluations["alstm"] / "videos.parquet")["predicted"][0]
    assert count_frames(output / told["heatmap"]) == len(rows) == told["frames"]
