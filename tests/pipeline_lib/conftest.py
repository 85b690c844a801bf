"""A small feature store that models can learn from, for the stages that start at features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.compute import devices
from pipeline_lib.streams.feature_files import FeatureWriter

FPS = 15.0
FRAMES, GRID, CHANNELS = 6, 4, 8
CLASSES = ("brush_hair", "sit", "walk & wave")
ATTRIBUTES = {
    "backbone": "vgg_small",
    "weights": "random",
    "weights_sha256": "a" * 64,
    "preprocessing": {"image_size": 64},
    "precision": "fp32",
    "fps": FPS,
    "tool_versions": {"torch": "2"},
}


@dataclass(frozen=True)
class FeatureStore:
    """Feature files, the table of their clips, and where the actor is in every frame."""

    files: list[Path]
    clips: pd.DataFrame
    boxes: pd.DataFrame
    fps: float = FPS


def make_clips() -> pd.DataFrame:
    """Return videos of two clips each, the second one padded; 6 train, 2 val and 3 test videos a class."""
    rows = []
    for class_name in CLASSES:
        for number, part in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 3 + ["unused"]):
            video = f"{class_name}/#{number} (é).avi"
            for first_frame, valid_frames in ((0, FRAMES), (FRAMES, 1 + number % FRAMES)):
                clip = f"{video}#{first_frame:05d}"
                rows.append((clip, video, class_name, f"group{number}_{class_name}", part, first_frame, valid_frames))
    columns = ["clip", "video", "class_name", "group", "split", "first_frame", "valid_frames"]
    return pd.DataFrame(rows, columns=columns)


def draw_features(clips: pd.DataFrame) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Return features_TKKD of each clip's valid frames, noise but for the actor's cell, and the actor's boxes."""
    rng = np.random.default_rng(0)
    features, boxes = [], []
    for clip in clips.itertuples():
        features_TKKD = np.maximum(rng.normal(0.0, 0.5, (clip.valid_frames, GRID, GRID, CHANNELS)), 0)
        row, column = rng.integers(0, GRID, 2)
        for frame in range(clip.valid_frames):
            column = (column + 1) % GRID
            features_TKKD[frame, row, column, CLASSES.index(clip.class_name)] += 6.0
            corners = column / GRID, row / GRID, (column + 1) / GRID, (row + 1) / GRID
            boxes.append((clip.video, (clip.first_frame + frame) / FPS, *corners))
        features.append(features_TKKD)
    return features, pd.DataFrame(boxes, columns=["video", "time_seconds", "x0", "y0", "x1", "y1"])


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """Run torch in one thread: tiny networks gain nothing from more, and on a busy machine waiting for them costs seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _gpu_settings() -> None:
    """Have the settings that `choose_device` makes before the first work on a GPU."""
    devices._configure_gpu()


@pytest.fixture(scope="session")
def feature_store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Return a store of one file a class; treat it as read-only."""
    folder = tmp_path_factory.mktemp("features")
    clips = make_clips()
    features, boxes = draw_features(clips)
    files = []
    for number, class_name in enumerate(CLASSES):
        files.append(folder / f"{number}.h5")
        chosen = np.flatnonzero(clips["class_name"] == class_name)
        with FeatureWriter(files[-1], clips.iloc[chosen], frame_shape=(GRID, GRID, CHANNELS), frames=FRAMES) as writer:
            writer.describe(ATTRIBUTES)
            for index in chosen:
                writer.append(features[index])
    return FeatureStore(files, clips, boxes)
