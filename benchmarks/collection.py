"""Videos to measure on: films of HMDB-51's size and codec, as the subsample stage leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from demo.actions import ACTIONS
from demo.encoding import AviWriter
from demo.films import HEIGHT, WIDTH, Film, random_source
from pipeline_lib.artifacts.tables import CollectionVideo
from pipeline_lib.params import SubsampleParams
from pipeline_lib.subsample import subsample_shard

SOURCE_FPS = 30
NUM_FRAMES = range(20, 300, 20)
"""Lengths of the videos before they are subsampled."""
NUM_SHORT = 5
"""Videos that a large network sees; small ones see the others."""


@dataclass(frozen=True)
class Shards:
    """Folders with videos at 15 fps: one short video to warm up on, some short videos, many longer ones."""

    warm_up: Path
    short: Path
    long: Path


def make_shards(directory: Path) -> Shards:
    """Render the videos and subsample them."""
    source = random_source(np.random.default_rng(0))
    videos = []
    for number, (num_frames, action) in enumerate(zip(NUM_FRAMES, cycle(ACTIONS), strict=False)):
        video = f"{action}/{number}.avi"
        (directory / "source" / action).mkdir(parents=True, exist_ok=True)
        film = Film(np.random.default_rng([0, number]), source, action, SOURCE_FPS, num_frames)
        _shoot(directory / "source" / video, film)
        videos.append(CollectionVideo(video, action))
    shards = Shards(directory / "warm-up", directory / "short", directory / "long")
    for shard, shard_videos in (
        (shards.warm_up, videos[:1]),
        (shards.short, videos[:NUM_SHORT]),
        (shards.long, videos[NUM_SHORT:]),
    ):
        subsample_shard(
            {video.video: directory / "source" / video.video for video in shard_videos}, shard_videos, shard, SubsampleParams()
        )
    return shards


def _shoot(path: Path, film: Film) -> None:
    with AviWriter(path, width=WIDTH, height=HEIGHT, fps=SOURCE_FPS, quality=5) as writer:
        for frame, _ in film.frames():
            writer.write(np.asarray(frame))
