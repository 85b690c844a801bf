"""The features stage: compute the backbone features of every frame of a shard's clips.

Shape suffixes: N frames, K grid side, D feature channels.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline_lib.artifacts import layout, tool_versions
from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.chunk import cut_clips
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.devices import PRECISIONS, choose_device, choose_precision
from pipeline_lib.errors import UserError
from pipeline_lib.params import ChunkParams, FeaturesParams
from pipeline_lib.streams.encoding import FrameEncoder, PendingFeatures, batches, decoded_side, default_batch, pinned_array
from pipeline_lib.streams.feature_files import FeatureWriter
from pipeline_lib.video.decoders import empty_array
from pipeline_lib.video.decoding import read_ahead

logger = logging.getLogger(__name__)

SHARDS_ON_GPU = 2
"""Shards that run on a GPU at the same time, so that it is not idle between shards."""

MAX_ENCODERS = 16
"""Encoders kept in memory: one, or one per fold when backbones are tuned."""

MAX_PENDING_BATCHES = 2
"""Batches on the device or waiting to be written while the next one is assembled."""


def extract_features(
    subsample_shard: Path,
    directory: Path,
    params: FeaturesParams,
    chunk: ChunkParams,
    *,
    fps: float,
    weights: Path | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write `features.h5` with the features of a subsample shard's clips to `directory`.

    Args:
        subsample_shard: folder with `videos/` and `videos.parquet`.
        directory: existing folder to write to.
        params: backbone, weights, sizes and device.
        chunk: how videos are cut into clips.
        fps: frame rate of the shard's videos; stored in the file.
        weights: file with a state dict that replaces `params.weights`, for example from the finetune stage.
        on_frames: called with the number of frames of each finished batch.

    Returns:
        `clips`, `frames` and `busy_seconds`. The latter holds the seconds of `network` and `writing` (they overlap),
        `waiting_for_frames`, and `all`: the shard's share of the device's time.

    Raises:
        UserError: a video's frame count differs from `videos.parquet`, or the backbone, weights or device are not available.
    """
    videos = pd.read_parquet(subsample_shard / layout.VIDEOS)
    videos = videos[videos["reason"].isna()]
    clips = cut_clips(videos, chunk)
    path = weights or (None if params.weights in ("imagenet", "random") else Path(params.weights))
    timings = Timings()
    device = choose_device(params.device)
    encoder = _make_encoder(params, path, device)
    started = time.monotonic()
    frame_shape = (params.grid, params.grid, encoder.backbone.channels)
    with FeatureWriter(directory / layout.FEATURES, clips, frame_shape=frame_shape, frames=chunk.frames) as writer:
        writer.describe(_provenance(encoder, fps))
        arrays = _frames_of_clips(subsample_shard, videos, clips, device, decoded_side(params.image_size))
        for num_frames in _encode_and_write(arrays, encoder, writer, timings):
            if on_frames:
                on_frames(num_frames)
    seconds = time.monotonic() - started
    sharing = SHARDS_ON_GPU if device.type == "cuda" else 1
    num_frames = int(clips["valid_frames"].sum())
    rate = num_frames / seconds
    logger.info(
        "%s: %d clips, %d frames, %.0f frames/s; %s", directory.name, len(clips), num_frames, rate, timings.shares(seconds)
    )
    return {"clips": len(clips), "frames": num_frames, "busy_seconds": timings.rounded(seconds / sharing)}


@dataclass
class Timings:
    """Seconds spent in each step of an extraction; the steps overlap."""

    network: float = 0.0
    writing: float = 0.0
    waiting_for_frames: float = 0.0

    def rounded(self, all_seconds: float) -> dict[str, float]:
        """Return the seconds of each step, and `all_seconds` as `all`, to the millisecond."""
        return {name: round(value, 3) for name, value in (vars(self) | {"all": all_seconds}).items()}

    def shares(self, seconds: float) -> str:
        """Format each step's share of the total time for the log."""
        return ", ".join(f"{name.replace('_', ' ')} {value / seconds:.0%}" for name, value in vars(self).items())


def _encode_and_write(
    arrays: Iterable[np.ndarray], encoder: FrameEncoder, writer: FeatureWriter, timings: Timings
) -> Iterator[int]:
    """Encode frames in batches and yield the number of frames of each batch once it is written.

    Decoding, the network and writing overlap.
    """

    def write(features: PendingFeatures) -> int:
        features_NKKD = features.wait()
        timings.network += features.seconds
        started = time.perf_counter()
        writer.append(features_NKKD)
        timings.writing += time.perf_counter() - started
        return len(features_NKKD)

    with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
        pending: deque[Future[int]] = deque()
        frame_batches = batches(arrays, encoder.batch_frames)
        try:
            while True:
                started = time.perf_counter()
                batch = next(frame_batches, None)
                timings.waiting_for_frames += time.perf_counter() - started
                if batch is None:
                    break
                pending += [pool.submit(write, features) for features in encoder.encode(batch)]
                while len(pending) > MAX_PENDING_BATCHES:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _frames_of_clips(
    shard: Path, videos: pd.DataFrame, clips: pd.DataFrame, device: torch.device, max_side: int
) -> Iterator[np.ndarray]:
    """Yield arrays with the frames of all clips, in clip order.

    Raises:
        UserError: a video's frame count differs from `videos.parquet`.
    """
    expected_frames = videos.set_index("video")["num_frames"]
    frames_in_clips = _frames_in_clips(clips)
    paths = ((video, layout.subsampled_path(shard, video)) for video in frames_in_clips)
    # A GPU needs many decoders to stay busy; on a CPU the network needs the cores.
    on_gpu = device.type == "cuda"
    workers, empty = (max(2, num_cores() // SHARDS_ON_GPU), pinned_array) if on_gpu else (2, empty_array)
    for video, arrays in read_ahead(paths, workers=workers, empty=empty, max_side=max_side):
        num_decoded = 0
        for frames_NHWC in arrays:
            wanted = frames_in_clips[video] - num_decoded
            if wanted > 0:
                yield frames_NHWC[:wanted]
            num_decoded += len(frames_NHWC)
        if num_decoded != expected_frames[video]:
            raise UserError(
                f"{video}: decoded {num_decoded} frames, but videos.parquet lists {expected_frames[video]}; "
                "run with `--refresh subsample`"
            )


def _frames_in_clips(clips: pd.DataFrame) -> dict[str, int]:
    """Return the number of frames that each video's clips cover, counted from its first frame."""
    covered: dict[str, int] = {}
    columns = (clips[name] for name in ("video", "first_frame", "valid_frames"))
    for video, first_frame, valid_frames in zip(*columns, strict=True):
        assert first_frame == covered.get(video, 0), "clips of a video must be contiguous"
        covered[video] = first_frame + valid_frames
    return covered


def _provenance(encoder: FrameEncoder, fps: float) -> dict[str, object]:
    backbone = encoder.backbone
    return {
        "backbone": backbone.name,
        "weights": backbone.weights_description,
        "weights_sha256": backbone.weights_sha256,
        "preprocessing": encoder.preprocessing,
        "precision": next(name for name, dtype in PRECISIONS.items() if dtype == encoder.precision),
        "fps": fps,
        "tool_versions": tool_versions(),
    }


def _make_encoder(params: FeaturesParams, path: Path | None, device: torch.device) -> FrameEncoder:
    """Return the encoder for these parameters, built once and shared by all shards."""
    modified_ns = path.stat().st_mtime_ns if path and path.is_file() else 0
    with _encoder_lock:
        return _cached_encoder(params, path, modified_ns, device)


_encoder_lock = threading.Lock()


@functools.lru_cache(maxsize=MAX_ENCODERS)
def _cached_encoder(params: FeaturesParams, path: Path | None, modified_ns: int, device: torch.device) -> FrameEncoder:
    """Build the encoder on the device; `modified_ns` is part of the cache key, so that a changed weight file is read again."""
    return FrameEncoder(
        build_backbone(params.backbone, params.weights, grid=params.grid, seed=params.seed, weights_file=path),
        image_size=params.image_size,
        batch_frames=params.batch_frames or default_batch(device, params.image_size),
        device=device,
        precision=choose_precision(params.precision, device, training=False),
    )
