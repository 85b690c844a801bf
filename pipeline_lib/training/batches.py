"""Clips with their features and labels, batch by batch: kept in memory where they fit, read from disk where they do not."""

# N clips, B batch, T frames of a clip, K grid side, D channels

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

logger = logging.getLogger(__name__)

READ_AHEAD = 2
"""Batches that are read from disk before they are asked for."""

BLOCK_CLIPS = 256
"""Clips that are copied to a GPU at once; bounds the pinned memory."""


class Loaded:
    """Features in memory, for all who use them at the time; freed with the last of them."""

    def __init__(self, features_NTKKD: torch.Tensor) -> None:
        self.features_NTKKD = features_NTKKD


_loaded: WeakValueDictionary[Hashable, Loaded] = WeakValueDictionary()
_loading = threading.Lock()


class Batch(NamedTuple):
    """Some clips, on the device the model runs on."""

    features_BTKKD: torch.Tensor
    """fp16, as they are stored, on a GPU; fp32 on a CPU, which computes in it."""
    valid_frames_B: torch.Tensor
    labels_B: torch.Tensor


class ClipSource:
    """The clips of one split, in the order of their table."""

    def __init__(
        self,
        reader: FeatureReader,
        clips: pd.DataFrame,
        classes: Sequence[str],
        device: torch.device,
        *,
        in_memory: bool,
    ) -> None:
        """Take the clips' labels from `classes`, their features from `reader`: all at once if `in_memory`.

        Sources of the same clips in memory share them.

        Raises:
            UserError: a clip is in none of the feature files.
        """
        self._reader = reader
        self._clips = clips["clip"].tolist()
        self._device = device
        self.seconds_waited = 0.0
        """For features that were still to be read from disk."""
        self._loaded = load_once(reader, self._clips, device) if in_memory else None
        self.valid_frames_N = torch.tensor(clips["valid_frames"].to_numpy(copy=True), dtype=torch.int64)
        self.labels_N = torch.tensor([classes.index(name) for name in clips["class_name"]], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._clips)

    def batches(self, batch_size: int, order_N: torch.Tensor | None = None) -> Iterator[Batch]:
        """Yield every clip once, in the given order; the last batch is what is left over."""
        order_N = torch.arange(len(self)) if order_N is None else order_N
        chosen = torch.split(order_N, batch_size)
        with closing(self._features(chosen)) as features:
            for chosen_B, features_BTKKD in zip(chosen, features, strict=True):
                yield Batch(
                    features_BTKKD.to(self._device, non_blocking=True),
                    self.valid_frames_N[chosen_B].to(self._device),
                    self.labels_N[chosen_B].to(self._device),
                )

    def _features(self, chosen: Sequence[torch.Tensor]) -> Generator[torch.Tensor, None, None]:
        """Yield features_BTKKD of the chosen clips; those on disk are read while the batches before are in use."""
        if self._loaded is not None:
            features_NTKKD = self._loaded.features_NTKKD
            for chosen_B in chosen:
                if self._device.type == "cpu":
                    yield _gather_fp32(features_NTKKD, chosen_B)
                else:
                    yield features_NTKKD[chosen_B.to(features_NTKKD.device)]
            return
        pinned = self._device.type == "cuda"
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read") as pool:
            under_way: deque[Future[torch.Tensor]] = deque()
            for chosen_B in chosen:
                clips = [self._clips[index] for index in chosen_B.tolist()]
                under_way.append(pool.submit(self._reader.load, clips, pinned=pinned))
                if len(under_way) > READ_AHEAD:
                    yield self._wait_for(under_way.popleft())
            while under_way:
                yield self._wait_for(under_way.popleft())

    def _wait_for(self, features: Future[torch.Tensor]) -> torch.Tensor:
        """Return features in the layout of those in memory: with another one sums can differ in their last bits."""
        began = time.perf_counter()
        features_BTKKD = features.result()
        self.seconds_waited += time.perf_counter() - began
        if self._device.type == "cpu":
            return _gather_fp32(features_BTKKD, torch.arange(len(features_BTKKD)))
        return features_BTKKD


def _gather_fp32(features_NTKKD: torch.Tensor, chosen_B: torch.Tensor) -> torch.Tensor:
    """Return the chosen clips' features in fp32, laid out frame by frame, as models visit them.

    One pass over them: to gather first and then convert takes three times as long.
    """
    frames, *shape = features_NTKKD.shape[1:]
    gathered_BTKKD = torch.empty(frames, len(chosen_B), *shape, dtype=torch.float32).transpose(0, 1)
    for features_TKKD, index in zip(gathered_BTKKD, chosen_B.tolist(), strict=True):
        features_TKKD.copy_(features_NTKKD[index])
    return gathered_BTKKD


def load_once(reader: FeatureReader, clips: Sequence[str], device: torch.device) -> Loaded:
    """Return the clips' features, on the device if they fit there; who asks for them again gets them while they are in use.

    Raises:
        UserError: a clip is in none of the feature files.
    """
    with _loading:  # who comes second waits for what the first one loads
        key = _identity(reader, clips, device)
        loaded = _loaded.get(key)
        if loaded is None:
            on_gpu = device.type == "cuda" and fits_on(device, _num_bytes(reader, len(clips)))
            loaded = _loaded[key] = Loaded(_load_to_gpu(reader, clips, device) if on_gpu else reader.load(clips))
        return loaded


def _load_to_gpu(reader: FeatureReader, clips: Sequence[str], device: torch.device) -> torch.Tensor:
    """Return features_NTKKD on the GPU, copied from pinned memory block by block while the next block is read."""
    features_NTKKD = torch.empty((len(clips), *reader.shape[1:]), dtype=torch.float16, device=device)
    for first in range(0, len(clips), BLOCK_CLIPS):
        block = slice(first, first + BLOCK_CLIPS)
        features_NTKKD[block].copy_(reader.load(clips[block], pinned=True), non_blocking=True)
    torch.cuda.current_stream(device).synchronize()  # other threads read them in other streams
    return features_NTKKD


def _num_bytes(reader: FeatureReader, num_clips: int) -> int:
    """Return the bytes of so many clips' features in fp16."""
    return 2 * num_clips * math.prod(reader.shape[1:])


def _identity(reader: FeatureReader, clips: Sequence[str], device: torch.device) -> Hashable:
    """Return what features that are the same have in common: files as they are now, clips, and device."""
    if not isinstance(reader, FeatureReader):
        return object()  # something else that loads features: nobody knows from where
    files = tuple((file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns) for file in map(Path.stat, reader.paths))
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return files, tuple(clips), (device.type, index)


def fits_in_memory(reader: FeatureReader, splits: Sequence[Sequence[str]], device: torch.device) -> bool:
    """Whether the features of these splits' clips, in fp16, may be kept in memory, or are there already; says so in the log."""
    with _loading:  # what is being loaded is there, once it is
        num_clips = sum(len(clips) for clips in splits if _identity(reader, clips, device) not in _loaded)
    num_bytes = _num_bytes(reader, num_clips)
    fits = num_clips == 0 or fits_on(torch.device("cpu"), num_bytes)
    logger.info("features of %d clips, %.2f GB: %s", num_clips, num_bytes / 1e9, "in memory" if fits else "from disk")
    return fits


def fits_on(device: torch.device, num_bytes: int) -> bool:
    """Whether a device has so much memory to spare."""
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return bool(num_bytes < MEMORY_SHARE * free_bytes)
