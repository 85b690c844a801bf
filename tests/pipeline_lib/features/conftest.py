"""A shard of small real H.264 videos, as the subsample stage leaves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.video.writing import VideoWriter

SIZES = {"wave/a (1).avi": (20, 64, 48), "wave/#b.avi": (4, 48, 64), "run/c.avi": (9, 64, 48)}
"""Frames, width and height of each video."""


def write_shard(shard: Path, sizes: dict[str, tuple[int, int, int]]) -> Path:
    rows = []
    for index, (video, (num_frames, width, height)) in enumerate(sizes.items()):
        path = shard / "videos" / f"{video}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_video(path, num_frames, width, height, np.random.default_rng(index))
        rows.append(_row(video, num_frames=num_frames, width=width, height=height, reason=None))
    rows.append(_row("wave/broken.avi", num_frames=0, width=0, height=0, reason="no video stream"))
    shard.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(shard / "videos.parquet")
    return shard


def _write_video(path: Path, num_frames: int, width: int, height: int, random: np.random.Generator) -> None:
    """Write smooth random colours, another picture in every frame."""
    with VideoWriter(path, width=width, height=height, fps=15) as writer:
        for _ in range(num_frames):
            coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            writer.write(coarse.repeat(16, axis=0).repeat(16, axis=1))


def _row(video: str, **values: object) -> dict[str, object]:
    return {"video": video, "class_name": video.partition("/")[0], "source_sha256": "0", "source_fps": 15.0, **values}


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("subsample"), SIZES)
