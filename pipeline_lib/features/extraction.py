"""The features stage: compute the features of a shard's clips, of one stream or several.

Shape suffixes: N frames or steps, K grid side, D feature channels.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline_lib.artifacts import layout, tool_versions
from pipeline_lib.chunk import cut_clips
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.devices import choose_device
from pipeline_lib.errors import UserError, naming
from pipeline_lib.params import ChunkParams, StreamParams
from pipeline_lib.streams.encoding import Batches, PendingFeatures, pinned_array
from pipeline_lib.streams.feature_files import FeatureWriter
from pipeline_lib.streams.stream import Span, Stream, interleave, wanted_of
from pipeline_lib.video.decoders import Wanted
from pipeline_lib.video.decoding import process_ahead

logger = logging.getLogger(__name__)

SHARDS_ON_GPU = 2
"""Shards that run on a GPU at the same time, so that it is not idle between shards."""

LOOKAHEAD_ON_GPU = 16
"""Arrays of images (up to 64 images and 8 MB) that each decoder of a GPU may be ahead: 300 frames of 320 x 240 with flow."""

MAX_STREAMS = 16
"""Streams kept open: those of a run, or those of each fold when backbones are tuned."""

MAX_PENDING_BATCHES = 2
"""Batches of a stream on the device or waiting to be written while the next one is assembled."""


def extract_features(
    subsample_shard: Path,
    directories: Mapping[str, Path],
    streams: Mapping[str, StreamParams],
    chunk: ChunkParams,
    *,
    fps: float,
    weights: Mapping[str, Path] | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write `features.h5` with the features of a subsample shard's clips for each stream; videos are decoded once for all.

    Args:
        subsample_shard: folder with `videos/` and `videos.parquet`.
        directories: existing folder to write to, by stream.
        streams: parameters by stream; their device is the same.
        chunk: how videos are cut into clips.
        fps: frame rate of the shard's videos; stored in the file.
        weights: file with a state dict that replaces a stream's `weights`, by stream; for example from the finetune stage.
        on_frames: called with the number of frames of each finished batch of a stream.

    Returns:
        for each stream `clips`, `frames` and `busy_seconds`. The latter holds the seconds of `network` and `writing` (they
        overlap), `waiting_for_frames`, and `all`: the stream's share of the shard's time.

    Raises:
        UserError: a video's frame count differs from `videos.parquet`, or a backbone, weights or a device are not available.
    """
    videos = pd.read_parquet(subsample_shard / layout.VIDEOS)
    shard = _Shard(subsample_shard, videos[videos["reason"].isna()], chunk)
    opened: dict[str, Stream] = {}
    for name, params in streams.items():
        with naming(f"stream {name}"):
            opened[name] = _open_stream(params, chunk.frames, (weights or {}).get(name))
    counts: dict[str, dict[str, Any]] = {}
    # Decoded frames must not depend on what other streams need.
    for side in sorted({stream.decoded_side for stream in opened.values()}):
        alike = {name: stream for name, stream in opened.items() if stream.decoded_side == side}
        with ExitStack() as stack:
            jobs = {name: _Job(stream, shard, directories[name], fps, stack) for name, stream in alike.items()}
            counts |= _extract(shard, jobs, side, on_frames)
    return counts


@dataclass(frozen=True)
class _Shard:
    """The videos of a subsample shard and their clips."""

    folder: Path
    videos: pd.DataFrame
    chunk: ChunkParams

    @functools.cached_property
    def clips(self) -> pd.DataFrame:
        """One row per clip."""
        return cut_clips(self.videos, self.chunk)

    @functools.cached_property
    def num_frames(self) -> int:
        """Valid frames of all clips."""
        return int(self.clips["valid_frames"].sum())

    def images(self, streams: Mapping[str, Stream], max_side: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the images of all clips for each stream, in clip order, with the stream's name.

        Raises:
            UserError: a video's frame count differs from `videos.parquet`.
        """
        spans = _spans(self.clips)
        wanted = wanted_of(streams.values())
        expected_frames = self.videos.set_index("video")["num_frames"]

        def images_of(video: str, decoded: Iterator[tuple[Wanted, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
            counted = _count(video, decoded, wanted, expected_frames[video])
            yield from interleave(streams, counted, spans[video])
            deque(counted, maxlen=0)  # a longer video is noticed

        # A GPU needs many decoders to stay busy; on a CPU the network needs the cores.
        on_gpu = any(stream.encoder.device.type == "cuda" for stream in streams.values())
        ahead: dict[str, Any] = {"workers": 2}
        if on_gpu:
            workers = max(2, num_cores() // SHARDS_ON_GPU)
            ahead = {"workers": workers, "lookahead": LOOKAHEAD_ON_GPU, "empty": pinned_array}
        paths = ((video, layout.subsampled_path(self.folder, video)) for video in spans)
        for _, images in process_ahead(paths, images_of, wanted=wanted, max_side=max_side, **ahead):
            yield from images


class _Job:
    """Encodes one stream of a shard and writes its features."""

    def __init__(self, stream: Stream, shard: _Shard, directory: Path, fps: float, stack: ExitStack) -> None:
        self.stream = stream
        self.directory = directory
        self.timings = Timings()
        self.batches = Batches(stream.encoder.batch_frames)
        self._valid_frames = iter(shard.clips["valid_frames"].tolist())
        self._writer = stack.enter_context(
            FeatureWriter(
                directory / layout.FEATURES,
                shard.clips,
                frame_shape=stream.frame_shape,
                frames=shard.chunk.frames,
                step_frames=stream.step_frames if stream.reads_clips else None,
                compression=stream.params.compression,
            )
        )
        self._writer.describe(stream.provenance | {"fps": fps, "tool_versions": tool_versions()})

    def write(self, features: PendingFeatures) -> int:
        """Wait for features, write them, and return the number of frames that they are from."""
        features_NKKD = features.wait()
        self.timings.network += features.seconds
        started = time.perf_counter()
        self._writer.append(features_NKKD)
        self.timings.writing += time.perf_counter() - started
        if not self.stream.reads_clips:
            return len(features_NKKD)
        num_clips = len(features_NKKD) // len(self.stream.step_frames)
        return sum(itertools.islice(self._valid_frames, num_clips))

    def counts(self, shard: _Shard, seconds: float) -> dict[str, Any]:
        """Return the counts of the finished job, which took `seconds` of the shard's time."""
        num_clips, num_frames = len(shard.clips), shard.num_frames
        shares = self.timings.shares(seconds)
        logger.info(
            "%s: %d clips, %d frames, %.0f frames/s; %s",
            self.directory.name,
            num_clips,
            num_frames,
            num_frames / seconds,
            shares,
        )
        return {
            "clips": num_clips,
            "frames": num_frames,
            "bytes_in_memory": self._writer.bytes_in_memory,
            "busy_seconds": self.timings.rounded(seconds),
        }


def _extract(
    shard: _Shard, jobs: Mapping[str, _Job], max_side: int, on_frames: Callable[[int], None] | None
) -> dict[str, dict[str, Any]]:
    """Run the jobs of one shard together and return their counts."""
    started = time.monotonic()
    waiting = Timings()
    images = shard.images({name: job.stream for name, job in jobs.items()}, max_side)
    for num_frames in _encode_and_write(images, jobs, waiting):
        if on_frames:
            on_frames(num_frames)
    seconds = time.monotonic() - started
    network = sum(job.timings.network for job in jobs.values())
    counts = {}
    for name, job in jobs.items():
        share = job.timings.network / network if len(jobs) > 1 and network else 1.0
        job.timings.waiting_for_frames = waiting.waiting_for_frames * share
        counts[name] = job.counts(shard, seconds * share)
    return counts


@dataclass
class Timings:
    """Seconds that a stream spent in each step of an extraction; the steps overlap."""

    network: float = 0.0
    writing: float = 0.0
    waiting_for_frames: float = 0.0

    def rounded(self, all_seconds: float) -> dict[str, float]:
        """Return the seconds of each step, and `all_seconds` as `all`, to the millisecond."""
        return {name: round(value, 3) for name, value in (vars(self) | {"all": all_seconds}).items()}

    def shares(self, seconds: float) -> str:
        """Format each step's share of the total time for the log."""
        return ", ".join(f"{name.replace('_', ' ')} {value / seconds:.0%}" for name, value in vars(self).items())


def _encode_and_write(images: Iterator[tuple[str, np.ndarray]], jobs: Mapping[str, _Job], waiting: Timings) -> Iterator[int]:
    """Encode images in batches and yield the number of frames of each batch once it is written.

    Decoding, the networks and writing overlap.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
        pending: deque[Future[int]] = deque()
        try:
            for job, batch in _batches(images, jobs, waiting):
                pending += [pool.submit(job.write, features) for features in job.stream.encoder.encode(batch)]
                while len(pending) > MAX_PENDING_BATCHES * len(jobs):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(
    images: Iterator[tuple[str, np.ndarray]], jobs: Mapping[str, _Job], waiting: Timings
) -> Iterator[tuple[_Job, list[np.ndarray]]]:
    """Yield batches of each job's images, and measure the time spent waiting for images."""
    while True:
        started = time.perf_counter()
        item = next(images, None)
        waiting.waiting_for_frames += time.perf_counter() - started
        if item is None:
            break
        name, array = item
        yield from ((jobs[name], batch) for batch in jobs[name].batches.add(array))
    for job in jobs.values():
        yield from ((job, batch) for batch in job.batches.rest())


def _count(
    video: str, decoded: Iterator[tuple[Wanted, np.ndarray]], wanted: Sequence[Wanted], expected: int
) -> Iterator[tuple[Wanted, np.ndarray]]:
    """Yield a video's arrays, and check at the end that there is an image of each kind for each frame."""
    counts = dict.fromkeys(wanted, 0)
    for kind, images_NHWC in decoded:
        counts[kind] += len(images_NHWC)
        yield kind, images_NHWC
    for num_decoded in counts.values():
        if num_decoded != expected:
            raise UserError(
                f"{video}: decoded {num_decoded} frames, but videos.parquet lists {expected}; run with `--refresh subsample`"
            )


def _spans(clips: pd.DataFrame) -> dict[str, Span]:
    """Return the part of each video that its clips cover, from its first frame."""
    spans: dict[str, Span] = {}
    columns = (clips[name] for name in ("video", "first_frame", "valid_frames"))
    for video, first_frame, valid_frames in zip(*columns, strict=True):
        span = spans.get(video, Span((), 0))
        assert first_frame == span.num_frames, "clips of a video must be contiguous"
        spans[video] = Span((*span.starts, first_frame), first_frame + valid_frames)
    return spans


def _open_stream(params: StreamParams, clip_frames: int, weights: Path | None) -> Stream:
    """Return the stream for these parameters, opened once and shared by all shards."""
    path = weights or params.weights_path
    modified_ns = path.stat().st_mtime_ns if path and path.is_file() else 0
    device = choose_device(params.device)
    with _streams_lock:
        return _cached_stream(params, clip_frames, weights, modified_ns, device)


_streams_lock = threading.Lock()


@functools.lru_cache(maxsize=MAX_STREAMS)
def _cached_stream(
    params: StreamParams, clip_frames: int, weights: Path | None, modified_ns: int, device: torch.device
) -> Stream:
    """Open a stream on the device; `modified_ns` is part of the cache key, so that a changed weight file is read again."""
    return Stream(params, clip_frames=clip_frames, device=device, weights_file=weights)
