"""A model with attention over time, from the features of two streams to its evaluation."""

# N clips, T frames of a clip, S steps of the second stream

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate import evaluate_model
from pipeline_lib.params import EvaluateParams, TrainParams
from pipeline_lib.streams.feature_files import FeatureWriter
from pipeline_lib.train import train_model
from pipeline_lib.training.checkpoints import read_metadata
from tests.pipeline_lib.conftest import ATTRIBUTES, CLASSES, FPS, FRAMES, GRID

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("single_thread")]

STEP_FRAMES = (1, 4)
TRAIN = TrainParams(epochs=30, patience=30, learning_rate=1e-2, alstm_units=16, device="cpu", dropout=0.2)
EVALUATE = EvaluateParams(device="cpu", batch_size=7)


@dataclass(frozen=True)
class TwoStreams:
    """Feature files of frames, followed by those of a clip network, and the table of their clips."""

    clips: pd.DataFrame
    files: list[Path]


@pytest.fixture(scope="module")
def two_streams(feature_store, tmp_path_factory) -> TwoStreams:
    """Make clips of noise, one of whose frames has the class in a channel; the second stream says nothing."""
    folder, clips = tmp_path_factory.mktemp("streams"), feature_store.clips
    rng = np.random.default_rng(0)
    paths = []
    for name, step_frames, channels in (("rgb", None, 5), ("clip", STEP_FRAMES, 4)):
        shape = (GRID, GRID, channels)
        paths.append(folder / f"{name}.h5")
        with FeatureWriter(paths[-1], clips, frame_shape=shape, frames=FRAMES, step_frames=step_frames) as writer:
            writer.describe(ATTRIBUTES)
            for clip in clips.itertuples():
                steps = clip.valid_frames if name == "rgb" else len(step_frames)
                features = np.maximum(rng.normal(0, 0.3, (steps, *shape)), 0)
                if name == "rgb":
                    features[rng.integers(steps), :, :, CLASSES.index(clip.class_name)] += 4
                writer.append(features.astype(np.float16))
    return TwoStreams(clips, paths)


def evaluate(store: TwoStreams, folder: Path, name: str, streams: int, params=EVALUATE):
    folder.mkdir(parents=True, exist_ok=True)
    model = TRAIN.model_copy(update={"spatial": "local"} if name == "local" else {}).of("temporal_attention")
    files = store.files[:streams]
    train_model(store.clips, files, folder, None, model, streams=streams)
    return evaluate_model(folder / "checkpoint.safetensors", store.clips, files, folder, params, fps=FPS)


@pytest.mark.parametrize("name", ["mean", "local"])
def test_importance_finds_the_frame_that_says_the_class(two_streams, tmp_path, name):
    metrics = evaluate(two_streams, tmp_path, name, streams=2)
    assert metrics["clip_accuracy"] == metrics["clip_accuracy_by_mean"] > 0.6
    assert len(read_metadata(tmp_path / "checkpoint.safetensors").streams) == 2
    kind = json.loads((tmp_path / "maps.json").read_text())["kind"]
    assert kind == {"local": "attention", "mean": "grad_cam"}[name]
    test = two_streams.clips[two_streams.clips["split"] == "test"]
    with h5py.File(tmp_path / "attention.h5") as file:
        importance_NT, attention_NTKK = file["importance"][:], file["attention"][:]
        assert file["importance"].attrs["axes"] == "clip,frame"
    valid_NT = np.arange(FRAMES) < test["valid_frames"].to_numpy()[:, None]
    np.testing.assert_allclose(importance_NT.sum(axis=1), 1, rtol=1e-5)
    assert not importance_NT[~valid_NT].any()
    whole_NT = importance_NT[test["valid_frames"] == FRAMES]
    assert whole_NT.max(axis=1).mean() > 1.5 / FRAMES
    spread = attention_NTKK.max(axis=(2, 3)) - attention_NTKK.min(axis=(2, 3))
    assert (spread.max() > 1e-4) == (name == "local")


def test_one_stream_alone(two_streams, tmp_path):
    metrics = evaluate(two_streams, tmp_path, "mean", streams=1)
    assert metrics["clip_accuracy"] > 0.6
    assert len(read_metadata(tmp_path / "checkpoint.safetensors").streams) == 1


def test_a_model_without_importance_writes_none_and_only_last_frames_vote(feature_store, tmp_path):
    model = TRAIN.model_copy(update={"epochs": 2}).of("mean_pool")
    train_model(feature_store.clips, feature_store.files, tmp_path, None, model)
    metrics = {}
    for last in (None, 1):
        folder = tmp_path / f"last {last}"
        folder.mkdir()
        params = EVALUATE.model_copy(update={"vote_last": last})
        checkpoint = tmp_path / "checkpoint.safetensors"
        metrics[last] = evaluate_model(checkpoint, feature_store.clips, feature_store.files, folder, params, fps=FPS)
    with h5py.File(folder / "attention.h5") as file:
        assert set(file) == {"attention", "clip"}
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table["predicted"].tolist() == [row.frame_predicted[-1] for row in table.itertuples()]
    assert metrics[1]["frame_accuracy"] == metrics[None]["frame_accuracy"]
    assert json.loads((folder / "metrics.json").read_text())["clip_accuracy"] == metrics[1]["clip_accuracy"]
