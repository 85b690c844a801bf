"""Motion-based attention trained and evaluated on two streams, where flow alone says which of two actors acts."""

# T frames of a clip, K grid side, D channels

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate import evaluate_model
from pipeline_lib.params import EvaluateParams, TrainParams
from pipeline_lib.streams.feature_files import FeatureWriter
from pipeline_lib.train import train_model
from pipeline_lib.training.checkpoints import read_metadata
from tests.pipeline_lib.conftest import ATTRIBUTES, FRAMES, GRID

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.integration, pytest.mark.slow]

CLASSES = ("sit", "stand", "wave")
RGB_CHANNELS, FLOW_CHANNELS = 6, 3
PARAMS = TrainParams(
    epochs=16, learning_rate=1e-2, normalise=False, alstm_units=12, conv_alstm_units=8, head_channels=16, device="cpu"
)
OPTIONS = {"motion_conv_alstm": {}, "motion_alstm": {"learning_rate": 3e-2, "epochs": 30, "dropout": 0.1}}


def make_clips() -> pd.DataFrame:
    rows = []
    for class_name in CLASSES:
        for number, split in enumerate(["train"] * 24 + ["val"] * 6 + ["test"] * 10):
            video = f"{class_name}/{number}.avi"
            rows.append((f"{video}#00000", video, class_name, f"group {number} {class_name}", split, 0, FRAMES - number % 3))
    return pd.DataFrame(rows, columns=["clip", "video", "class_name", "group", "split", "first_frame", "valid_frames"])


def draw_clips(clips: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield RGB and flow of each clip: an actor of its class moves, one of another class stands still, and RGB sees both."""
    rng = np.random.default_rng(0)
    for clip in clips.itertuples():
        label = CLASSES.index(clip.class_name)
        rgb_TKKD = rng.normal(0.0, 0.1, (clip.valid_frames, GRID, GRID, RGB_CHANNELS))
        flow_TKKD = rng.normal(0.0, 0.1, (clip.valid_frames, GRID, GRID, FLOW_CHANNELS))
        cells = rng.choice(GRID * GRID, 2, replace=False)
        for cell, actor in zip(cells, (label, (label + rng.integers(1, 3)) % 3), strict=True):
            rgb_TKKD[:, cell // GRID, cell % GRID, actor] += 4
        flow_TKKD[:, cells[0] // GRID, cells[0] % GRID, label] += 2
        yield rgb_TKKD, flow_TKKD


@pytest.fixture(scope="module")
def two_streams(tmp_path_factory) -> tuple[pd.DataFrame, list[Path]]:
    """Return the table of clips, and the files of both streams."""
    clips, folder = make_clips(), tmp_path_factory.mktemp("streams")
    files = [folder / "rgb.h5", folder / "flow.h5"]
    drawn = list(draw_clips(clips))
    for stream, (path, channels) in enumerate(zip(files, (RGB_CHANNELS, FLOW_CHANNELS), strict=True)):
        with FeatureWriter(path, clips, frame_shape=(GRID, GRID, channels), frames=FRAMES) as writer:
            writer.describe(ATTRIBUTES | {"weights_sha256": str(stream) * 64})
            for of_clip in drawn:
                writer.append(of_clip[stream])
    return clips, files


def train_on(two_streams, folder: Path, name: str, **options) -> Path:
    """Return the checkpoint."""
    clips, files = two_streams
    folder.mkdir(parents=True)
    params = PARAMS.model_copy(update={"overrides": {name: OPTIONS[name] | options}})
    train_model(clips, files, folder, None, params.of(name))
    return folder / "checkpoint.safetensors"


def evaluate_on(two_streams, checkpoint: Path, folder: Path, batch_size: int = 64) -> float:
    """Return the accuracy on the test split's clips."""
    folder.mkdir(parents=True)
    params = EvaluateParams(device="cpu", resamples=100, batch_size=batch_size)
    return evaluate_model(checkpoint, *two_streams, folder, params, fps=15)["clip_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_motion_finds_the_actor_and_that_of_another_clip_does_not(two_streams, tmp_path, name):
    accuracy = {}
    for motion in ("state", "shuffled"):
        checkpoint = train_on(two_streams, tmp_path / motion, name, motion=motion)
        accuracy[motion] = evaluate_on(two_streams, checkpoint, tmp_path / motion / "evaluation")
    assert accuracy["state"] > 0.85, accuracy
    assert accuracy["shuffled"] < accuracy["state"] - 0.2, accuracy
    metadata = read_metadata(checkpoint)
    assert metadata.stream_channels == (RGB_CHANNELS, FLOW_CHANNELS)
    assert [stream["weights_sha256"][0] for stream in metadata.streams] == ["0", "1"]
    assert (tmp_path / "state" / "evaluation" / "maps.json").is_file()


def test_a_shuffled_model_is_evaluated_alike_in_batches_of_any_size(two_streams, tmp_path):
    checkpoint = train_on(two_streams, tmp_path / "train", "motion_alstm", motion="shuffled", epochs=2)
    predictions = []
    for batch_size in (64, 7):
        evaluate_on(two_streams, checkpoint, tmp_path / str(batch_size), batch_size)
        predictions.append(pd.read_parquet(tmp_path / str(batch_size) / "predictions.parquet"))
    pd.testing.assert_frame_equal(*predictions, rtol=1e-5)


@pytest.mark.parametrize("motion", ["map", "magnitude"])
def test_ablations_learn_where_it_moves(two_streams, tmp_path, motion):
    checkpoint = train_on(two_streams, tmp_path / "train", "motion_conv_alstm", motion=motion)
    assert evaluate_on(two_streams, checkpoint, tmp_path / "evaluation") > 0.75
