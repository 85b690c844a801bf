"""Load batches of clips with features and labels, from memory if the features fit, otherwise from disk."""

# N clips, B batch, T steps of a clip, K grid side, D channels

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import pandas as pd
import psutil
import torch

from pipeline_lib.compute.planning import MEMORY_SHARE
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.joined import JoinedReader
from pipeline_lib.streams.steps import valid_steps

logger = logging.getLogger(__name__)

READ_AHEAD = 2
"""Batches to prefetch from disk."""

BLOCK_CLIPS = 256
"""Clips per copy to a GPU; bounds the pinned memory."""


class CachedFeatures:
    """Features in memory, shared by all loaders of the same clips and freed with the last one."""

    def __init__(self, features_NTKKD: torch.Tensor) -> None:
        self.features_NTKKD = features_NTKKD


_cache: WeakValueDictionary[Hashable, CachedFeatures] = WeakValueDictionary()
_cache_lock = threading.Lock()


class Batch(NamedTuple):
    """A batch of clips on the model's device."""

    features_BTKKD: torch.Tensor
    """One map a step of the stream; fp16, as stored, on a GPU; fp32 on a CPU."""
    valid_steps_B: torch.Tensor
    labels_B: torch.Tensor


class ClipLoader:
    """Load the clips of one split in batches."""

    def __init__(
        self,
        reader: FeatureReader | JoinedReader,
        clips: pd.DataFrame,
        classes: Sequence[str],
        device: torch.device,
        *,
        in_memory: bool,
    ) -> None:
        """Prepare to load `clips` from `reader`; read all features now if `in_memory`.

        `classes` gives the index of each label. Loaders with the same clips in memory share the features.

        Raises:
            UserError: a clip is in none of the feature files.
        """
        self._reader = reader
        self._clips = clips["clip"].tolist()
        self._device = device
        self.seconds_waited = 0.0
        """Seconds spent waiting for features to be read from disk."""
        self._cached = load_cached(reader, self._clips, device) if in_memory else None
        self.step_frames = reader.step_frames
        """The frame in the middle of each step."""
        self.valid_frames_N = torch.tensor(clips["valid_frames"].to_numpy(copy=True), dtype=torch.int64)
        self.valid_steps_N = torch.from_numpy(valid_steps(self.step_frames, self.valid_frames_N.numpy()))
        label_of = {name: label for label, name in enumerate(classes)}
        self.labels_N = torch.tensor([label_of[name] for name in clips["class_name"]], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def num_frames(self) -> int:
        """Frames of a clip, with padding."""
        return max(self.step_frames[-1] + 1, *self.valid_frames_N.tolist())

    def batches(self, batch_size: int, order_N: torch.Tensor | None = None) -> Iterator[Batch]:
        """Yield every clip once, in the given order (default: the table's); the last batch may be smaller."""
        order_N = torch.arange(len(self)) if order_N is None else order_N
        chosen = torch.split(order_N, batch_size)
        with closing(self._features(chosen)) as features:
            for chosen_B, features_BTKKD in zip(chosen, features, strict=True):
                yield Batch(
                    features_BTKKD.to(self._device, non_blocking=True),
                    self.valid_steps_N[chosen_B].to(self._device),
                    self.labels_N[chosen_B].to(self._device),
                )

    def _features(self, chosen: Sequence[torch.Tensor]) -> Generator[torch.Tensor, None, None]:
        """Yield features_BTKKD of the chosen clips, prefetching from disk."""
        if self._cached is not None:
            features_NTKKD = self._cached.features_NTKKD
            for chosen_B in chosen:
                if self._device.type == "cpu":
                    yield _gather_fp32(features_NTKKD, chosen_B)
                else:
                    yield features_NTKKD[chosen_B.to(features_NTKKD.device)]
            return
        pinned = self._device.type == "cuda"
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read") as pool:
            pending: deque[Future[torch.Tensor]] = deque()
            for chosen_B in chosen:
                clips = [self._clips[index] for index in chosen_B.tolist()]
                pending.append(pool.submit(self._reader.load, clips, pinned=pinned))
                if len(pending) > READ_AHEAD:
                    yield self._wait_for(pending.popleft())
            while pending:
                yield self._wait_for(pending.popleft())

    def _wait_for(self, features: Future[torch.Tensor]) -> torch.Tensor:
        """Wait for a batch; return it in the layout of features in memory, because sums depend on the layout."""
        started = time.perf_counter()
        features_BTKKD = features.result()
        self.seconds_waited += time.perf_counter() - started
        if self._device.type == "cpu":
            return _gather_fp32(features_BTKKD, torch.arange(len(features_BTKKD)))
        return features_BTKKD


def _gather_fp32(features_NTKKD: torch.Tensor, chosen_B: torch.Tensor) -> torch.Tensor:
    """Return the chosen clips' features in fp32, contiguous by frame, as models read them.

    Gathers and converts in one pass, because two passes are slower.
    """
    frames, *shape = features_NTKKD.shape[1:]
    gathered_BTKKD = torch.empty(frames, len(chosen_B), *shape, dtype=torch.float32).transpose(0, 1)
    for features_TKKD, index in zip(gathered_BTKKD, chosen_B.tolist(), strict=True):
        features_TKKD.copy_(features_NTKKD[index])
    return gathered_BTKKD


def load_cached(reader: FeatureReader | JoinedReader, clips: Sequence[str], device: torch.device) -> CachedFeatures:
    """Return the clips' features, on the device if they fit there and otherwise on the CPU.

    Features that another loader in this process still uses are not read again.

    Raises:
        UserError: a clip is in none of the feature files.
    """
    with _cache_lock:  # held while loading, so that concurrent requests for the same features read them once
        key = _cache_key(reader, clips, device)
        cached = _cache.get(key)
        if cached is None:
            on_gpu = device.type == "cuda" and fits_on(device, _num_bytes(reader, len(clips)))
            cached = _cache[key] = CachedFeatures(_load_to_gpu(reader, clips, device) if on_gpu else reader.load(clips))
        return cached


def _load_to_gpu(reader: FeatureReader | JoinedReader, clips: Sequence[str], device: torch.device) -> torch.Tensor:
    """Return features_NTKKD on the GPU; copying a block overlaps reading the next one."""
    features_NTKKD = torch.empty((len(clips), *reader.shape[1:]), dtype=torch.float16, device=device)
    for first in range(0, len(clips), BLOCK_CLIPS):
        block = slice(first, first + BLOCK_CLIPS)
        features_NTKKD[block].copy_(reader.load(clips[block], pinned=True), non_blocking=True)
    torch.cuda.current_stream(device).synchronize()  # other threads use the features in other streams
    return features_NTKKD


def _num_bytes(reader: FeatureReader | JoinedReader, num_clips: int) -> int:
    """Return the size in bytes of `num_clips` clips' features in fp16."""
    return 2 * num_clips * math.prod(reader.shape[1:])


def _cache_key(reader: FeatureReader | JoinedReader, clips: Sequence[str], device: torch.device) -> Hashable:
    """Return the identity of features in memory: the current state of the files, the clips and the device."""
    if not isinstance(reader, FeatureReader | JoinedReader):
        return object()  # another kind of reader: its files are unknown, so never share its features
    files = tuple((file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns) for file in map(Path.stat, reader.paths))
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    others = tuple(reader.others.items()) if isinstance(reader, JoinedReader) else ()
    return files, tuple(clips), others, (device.type, index)


def fits_in_memory(reader: FeatureReader | JoinedReader, splits: Sequence[Sequence[str]], device: torch.device) -> bool:
    """Return, and log, whether the fp16 features of these splits' clips fit in memory or are there already."""
    with _cache_lock:  # wait for features that are being loaded
        num_clips = sum(len(clips) for clips in splits if _cache_key(reader, clips, device) not in _cache)
    num_bytes = _num_bytes(reader, num_clips)
    fits = num_clips == 0 or fits_on(torch.device("cpu"), num_bytes)
    logger.info("features of %d clips, %.2f GB: %s", num_clips, num_bytes / 1e9, "in memory" if fits else "from disk")
    return fits


def fits_on(device: torch.device, num_bytes: int) -> bool:
    """Return whether `num_bytes` take at most `MEMORY_SHARE` of the device's free memory."""
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return bool(num_bytes < MEMORY_SHARE * free_bytes)
