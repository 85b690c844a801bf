"""A collection so small that the whole pipeline takes seconds on it, and a way to run it in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline_lib.video.writing import VideoWriter

CLASSES = {"wave": (200, 40, 40), "jump": (40, 40, 200)}
NUM_VIDEOS = 8
LENGTHS = (40, 64, 24, 70, 36, 62, 64, 20)
"""Frames at 30 fps: some shorter than a clip of 20 frames at 15 fps, some with a tail."""


def render_video(path: Path, colour: tuple[int, int, int], num_frames: int, seed: int) -> None:
    """Write a square of the class's colour wandering over noise."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = generator.integers(8, 40, 2)
    with VideoWriter(path, width=64, height=48, fps=30) as writer:
        for number in range(num_frames):
            frame = generator.integers(90, 150, (48, 64, 3), dtype=np.uint8)
            left = int(x + 6 * np.sin(number / 9)) % 48
            frame[y % 32 : y % 32 + 14, left : left + 14] = colour
            writer.write(frame)


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory) -> Path:
    """Return `<folder>/videos/<class>/*.mp4` and `<folder>/splits`."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "splits").mkdir()
    for class_name, colour in CLASSES.items():
        names = [f"#{number}_(src {number}) ü_{class_name}_f_cm_np1_fr_med_0.mp4" for number in range(NUM_VIDEOS)]
        for number, name in enumerate(names):
            render_video(root / "videos" / class_name / name, colour, LENGTHS[number], seed=number)
        lines = [f"{name} {1 if number < 5 else 2} \n" for number, name in enumerate(names)]
        (root / "splits" / f"{class_name}_test_split1.txt").write_text("".join(lines), encoding="utf-8")
    return root


TINY: dict[str, Any] = {
    "subsample": {"shard_videos": 4},
    "chunk": {"frames": 20},
    "features": {"backbone": "vgg_small", "weights": "random", "image_size": 32, "grid": 2},
    "train": {
        "models": ["alstm", "conv_alstm", "mean_pool"],
        "epochs": 2,
        "learning_rate": 0.003,
        "alstm_units": 8,
        "conv_alstm_units": 4,
        "head_channels": 4,
    },
    "evaluate": {"resamples": 500, "permutations": 3},
    "heatmaps": {"side": 64, "successes": 1, "failures": 1, "gif_side": 32},
    "tracking": {"system_metrics": False},
}


@dataclass
class Pipeline:
    """Runs the flow in this process, in one workspace."""

    folder: Path
    collection: Path
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def write_params(self) -> Path:
        fetch = {"kind": "folder", "videos": str(self.collection / "videos"), "splits": str(self.collection / "splits")}
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump({"workspace": str(self.workspace), "fetch": fetch} | TINY | self.params))
        return path

    def run(self, *settings: str, until: str | None = None, refresh: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run the flow and return its summary."""
        from flows.har import har

        return har(str(self.write_params()), list(settings), until, list(refresh))

    def caches(self, *settings: str, until: str | None = None, refresh: tuple[str, ...] = ()) -> dict[str, str]:
        """Run the flow and return each stage's cache state, the report's left out: it is each run's own."""
        stages = self.run(*settings, until=until, refresh=refresh)["stages"]
        return {stage: row["cache"] for stage, row in stages.items() if stage != "report"}


@pytest.fixture
def pipeline(tmp_path, tiny_collection, prefect_server) -> Pipeline:
    """Return a pipeline over the tiny collection with a workspace of its own."""
    return Pipeline(tmp_path, tiny_collection)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_collection, prefect_server) -> tuple[Pipeline, dict[str, Any]]:
    """Return a pipeline that has run once, and its summary; tests must not change its collection or artifacts."""
    pipeline = Pipeline(tmp_path_factory.mktemp("finished"), tiny_collection)
    return pipeline, pipeline.run()


@pytest.fixture
def copy_of_finished(finished, tmp_path) -> Callable[[], Pipeline]:
    """Return what copies the finished workspace and collection, for tests that change them."""
    import shutil

    def copy() -> Pipeline:
        source, _ = finished
        shutil.copytree(source.workspace, tmp_path / "workspace")
        shutil.copytree(source.collection, tmp_path / "collection")
        return Pipeline(tmp_path, tmp_path / "collection")

    return copy
