"""The features stage: the clips of a shard of 15 fps videos, as features of every frame.

Shape suffixes: N frames, K grid side, D feature channels.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline_lib.artifacts import tool_versions
from pipeline_lib.chunk import cut_clips
from pipeline_lib.features.decoding import read_ahead
from pipeline_lib.features.encoding import FrameEncoder
from pipeline_lib.features.hdf5 import FeatureWriter
from pipeline_lib.models.backbones import Backbone, build_backbone
from pipeline_lib.models.devices import PRECISIONS, choose_device, choose_precision
from pipeline_lib.params import ChunkParams, FeaturesParams

logger = logging.getLogger(__name__)

FEATURES = "features.h5"


def extract_features(
    subsample_shard: Path,
    directory: Path,
    params: FeaturesParams,
    chunk: ChunkParams,
    *,
    fps: float,
    weights: Path | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write `features.h5` with all clips of a subsample shard into `directory`.

    Args:
        subsample_shard: folder with `videos/` and `videos.parquet`.
        directory: existing folder for the file.
        params: backbone, weights, sizes and device.
        chunk: how videos are cut into clips.
        fps: frame rate of the shard's videos, written into the file.
        weights: state dict that replaces `params.weights`, such as the finetune stage's.
        on_frames: called with the number of frames of each finished batch.

    Returns:
        counts: clips, frames.

    Raises:
        ValueError: a video does not decode to the frames that `videos.parquet` tells; backbone, weights or device that
            cannot be had.
    """
    started = time.monotonic()
    videos = pd.read_parquet(subsample_shard / "videos.parquet")
    videos = videos[videos["reason"].isna()]
    clips = cut_clips(videos, chunk)
    encoder = _make_encoder(params, weights)
    frame_shape = (params.grid, params.grid, encoder.backbone.channels)
    num_frames = 0
    with FeatureWriter(directory / FEATURES, clips, frame_shape=frame_shape, frames=chunk.frames) as writer:
        writer.describe(_provenance(encoder, fps))
        for batch in _batches(_frames_of_clips(subsample_shard, videos, clips), params.batch_frames):
            writer.append(encoder.encode(batch))
            num_frames += len(batch)
            if on_frames:
                on_frames(len(batch))
    seconds = time.monotonic() - started
    logger.info("%s: %d clips, %d frames, %.0f frames/s", directory.name, len(clips), num_frames, num_frames / seconds)
    return {"clips": len(clips), "frames": num_frames}


def _frames_of_clips(shard: Path, videos: pd.DataFrame, clips: pd.DataFrame) -> Iterator[np.ndarray]:
    """Yield the frames of all clips, in the order of the clips, and count the frames of every video on the way."""
    expected_frames = videos.set_index("video")["num_frames"]
    frames_in_clips = _frames_in_clips(clips)
    paths = ((video, shard / "videos" / f"{video}.mp4") for video in frames_in_clips)
    for video, frames in read_ahead(paths):
        num_decoded = 0
        for frame in frames:
            if num_decoded < frames_in_clips[video]:
                yield frame
            num_decoded += 1
        if num_decoded != expected_frames[video]:
            raise ValueError(
                f"{video}: decodes to {num_decoded} frames, videos.parquet tells {expected_frames[video]}; "
                "run with `--refresh subsample`"
            )


def _frames_in_clips(clips: pd.DataFrame) -> dict[str, int]:
    """Return how many frames, from its first on, each video's clips cover."""
    covered: dict[str, int] = {}
    columns = (clips[name] for name in ("video", "first_frame", "valid_frames"))
    for video, first_frame, valid_frames in zip(*columns, strict=True):
        assert first_frame == covered.get(video, 0), "clips follow one another without gap or overlap"
        covered[video] = first_frame + valid_frames
    return covered


def _batches(frames: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    iterator = iter(frames)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _provenance(encoder: FrameEncoder, fps: float) -> dict[str, object]:
    backbone = encoder.backbone
    return {
        "backbone": backbone.name,
        "weights": backbone.weights_description,
        "weights_sha256": backbone.weights_sha256,
        "preprocessing": encoder.preprocessing(),
        "precision": next(name for name, dtype in PRECISIONS.items() if dtype == encoder.precision),
        "fps": fps,
        "tool_versions": tool_versions(),
    }


def _make_encoder(params: FeaturesParams, weights: Path | None) -> FrameEncoder:
    device = choose_device(params.device)
    path = weights or (None if params.weights in ("imagenet", "random") else Path(params.weights))
    version = path.stat().st_mtime_ns if path and path.is_file() else 0
    with _building:
        backbone = _shared_backbone(params.backbone, params.weights, params.grid, params.seed, path, version)
        return FrameEncoder(
            backbone,
            image_size=params.image_size,
            batch_frames=params.batch_frames,
            device=device,
            precision=choose_precision(params.precision, device),
        )


_building = threading.Lock()


@functools.lru_cache(maxsize=1)
def _shared_backbone(name: str, weights: str, grid: int, seed: int, path: Path | None, version: int) -> Backbone:
    """Build the backbone once for all shards of a run; `version` tells a changed weight file."""
    return build_backbone(name, weights, grid=grid, seed=seed, weights_file=path)
