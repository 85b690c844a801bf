"""Locks, streams and precision for training and inference in several threads on a GPU.

Small models leave most of a GPU idle, so several training runs share it, each in its own stream. Every run must give
the same bits as when it runs alone. Precision is a setting of the process, so it is changed only under the exclusive lock.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from pipeline_lib.compute.determinism import deterministic_algorithms
from pipeline_lib.compute.devices import fp32_precision, set_fp32_precision
from pipeline_lib.compute.shared_lock import SharedLock

logger = logging.getLogger(__name__)

GPU_LOCK = SharedLock(max_holders=16)
"""Inference holds it shared. CUDA-graph capture holds it exclusively, because it changes the process's precision settings.
Replays need no lock. There is one lock for all GPUs, because they share the settings."""

_idle_streams: defaultdict[int, list[torch.cuda.Stream]] = defaultdict(list)
_idle_lock = threading.Lock()


@contextmanager
def deterministic_inference(device: torch.device) -> Iterator[None]:
    """Hold the GPU lock shared and use deterministic algorithms and true fp32 in the block; does nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    with GPU_LOCK.shared(), deterministic_algorithms():
        yield


def exclusive_gpu(device: torch.device) -> AbstractContextManager[None]:
    """Hold the GPU lock exclusively in the block: no inference or capture in other threads. Does nothing on a CPU."""
    return GPU_LOCK.exclusive() if device.type == "cuda" else nullcontext()


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Compute fp32 products and convolutions in TF32 in the block.

    This is a setting of the process; the caller must hold `GPU_LOCK` exclusively.
    """
    _log_tf32()
    before = fp32_precision()
    set_fp32_precision("tf32", "tf32", "tf32")
    try:
        yield
    finally:
        set_fp32_precision(*before)


@functools.cache
def _log_tf32() -> None:
    logger.info("training steps compute fp32 operations in TF32; validation and inference use true fp32")


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the block's GPU work in a stream that no other thread uses, and synchronise at the end; does nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    stream = _take_stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()
        with _idle_lock:
            _idle_streams[stream.device_index].append(stream)


def _take_stream() -> torch.cuda.Stream:
    """Return an idle stream of the current GPU, or a new one.

    PyTorch hands out 32 streams in rotation, and cuBLAS keeps a workspace per stream, so two training runs must never get the
    same one. Streams are therefore reused here, and have a priority that no other code in the process requests.
    """
    with _idle_lock:
        idle = _idle_streams[torch.cuda.current_device()]
        return idle.pop() if idle else torch.cuda.Stream(priority=-1)
