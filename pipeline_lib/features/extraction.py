"""The features stage: the clips of a shard of 15 fps videos, as features of every frame.

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
from pipeline_lib.streams.encoding import Encoded, FrameEncoder, batches, decoded_side, default_batch, pinned_array
from pipeline_lib.streams.feature_files import FeatureWriter
from pipeline_lib.video.decoders import empty_array
from pipeline_lib.video.decoding import read_ahead

logger = logging.getLogger(__name__)


SHARDS_ON_GPU = 2
"""Shards that a GPU works on at once: one, and the next, so that it finds work when the first ends."""


MOST_ENCODERS = 16
"""Encoders that are kept: one, or of tuned backbones one a split."""

UNDER_WAY = 2
"""Batches on the device, or waiting to be written, while the next is put together."""


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
        counts: clips, frames, and `busy_seconds`: how long the network and writing were at work, which overlap, how long the
        network waited for frames, and `all`: this shard's part of the device's time.

    Raises:
        UserError: a video does not decode to the frames that `videos.parquet` tells; backbone, weights or device that
            cannot be had.
    """
    videos = pd.read_parquet(subsample_shard / layout.VIDEOS)
    videos = videos[videos["reason"].isna()]
    clips = cut_clips(videos, chunk)
    path = weights or (None if params.weights in ("imagenet", "random") else Path(params.weights))
    busy = Busy()
    device = choose_device(params.device)
    encoder = _make_encoder(params, path, device)
    started = time.monotonic()
    frame_shape = (params.grid, params.grid, encoder.backbone.channels)
    with FeatureWriter(directory / layout.FEATURES, clips, frame_shape=frame_shape, frames=chunk.frames) as writer:
        writer.describe(_provenance(encoder, fps))
        arrays = _frames_of_clips(subsample_shard, videos, clips, device, decoded_side(params.image_size))
        for num_frames in _encode_and_write(arrays, encoder, writer, busy):
            if on_frames:
                on_frames(num_frames)
    seconds = time.monotonic() - started
    sharing = SHARDS_ON_GPU if device.type == "cuda" else 1
    num_frames = int(clips["valid_frames"].sum())
    rate = num_frames / seconds
    logger.info(
        "%s: %d clips, %d frames, %.0f frames/s; %s", directory.name, len(clips), num_frames, rate, busy.shares(seconds)
    )
    return {"clips": len(clips), "frames": num_frames, "busy_seconds": busy.rounded(seconds / sharing)}


@dataclass
class Busy:
    """Seconds that the parts of an extraction, which overlap, were at work."""

    network: float = 0.0
    writing: float = 0.0
    waiting_for_frames: float = 0.0

    def rounded(self, all_seconds: float) -> dict[str, float]:
        """Return the seconds by name, and all of them."""
        return {name: round(value, 3) for name, value in (vars(self) | {"all": all_seconds}).items()}

    def shares(self, seconds: float) -> str:
        """Return each part's share of the whole time, in words."""
        return ", ".join(f"{name.replace('_', ' ')} {value / seconds:.0%}" for name, value in vars(self).items())


def _encode_and_write(arrays: Iterable[np.ndarray], encoder: FrameEncoder, writer: FeatureWriter, busy: Busy) -> Iterator[int]:
    """Yield the number of frames of each part that has been written; the next are under way meanwhile."""

    def write(encoded: Encoded) -> int:
        features_NKKD = encoded.wait()
        busy.network += encoded.seconds
        began = time.perf_counter()
        writer.append(features_NKKD)
        busy.writing += time.perf_counter() - began
        return len(features_NKKD)

    with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
        under_way: deque[Future[int]] = deque()
        waiting = batches(arrays, encoder.batch_frames)
        try:
            while True:
                began = time.perf_counter()
                batch = next(waiting, None)
                busy.waiting_for_frames += time.perf_counter() - began
                if batch is None:
                    break
                under_way += [pool.submit(write, encoded) for encoded in encoder.encode(batch)]
                while len(under_way) > UNDER_WAY:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _frames_of_clips(
    shard: Path, videos: pd.DataFrame, clips: pd.DataFrame, device: torch.device, max_side: int
) -> Iterator[np.ndarray]:
    """Yield the frames of all clips in arrays, in the order of the clips, and count the frames of every video on the way."""
    expected_frames = videos.set_index("video")["num_frames"]
    frames_in_clips = _frames_in_clips(clips)
    paths = ((video, layout.subsampled_path(shard, video)) for video in frames_in_clips)
    # A GPU is hard to keep busy; on a CPU the network needs the cores.
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
    """Return what turns frames into features, built once for all shards of a run."""
    version = path.stat().st_mtime_ns if path and path.is_file() else 0
    with _building:
        return _shared_encoder(params, path, version, device)


_building = threading.Lock()


@functools.lru_cache(maxsize=MOST_ENCODERS)
def _shared_encoder(params: FeaturesParams, path: Path | None, version: int, device: torch.device) -> FrameEncoder:
    """Build the backbone and put it on the device; `version` tells a changed weight file."""
    return FrameEncoder(
        build_backbone(params.backbone, params.weights, grid=params.grid, seed=params.seed, weights_file=path),
        image_size=params.image_size,
        batch_frames=params.batch_frames or default_batch(device, params.image_size),
        device=device,
        precision=choose_precision(params.precision, device, training=False),
    )
