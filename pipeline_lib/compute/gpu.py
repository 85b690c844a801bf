"""What trainings and inference in threads of one process share on a GPU, and how they keep out of each other's way.

Steps of small models leave most of a GPU idle, so that several trainings, each on a stream of its own, take more steps together
than one. Each must give the bits that it gives alone: precision, a setting of the whole process, is changed only while nobody
else starts kernels that it would touch.
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
"""Inference takes a place, the capture of a training step all of them; replays of captured steps need none. One room for all
GPUs, as they share the settings."""

_idle_streams: defaultdict[int, list[torch.cuda.Stream]] = defaultdict(list)
_idle_lock = threading.Lock()


@contextmanager
def deterministic_inference(device: torch.device) -> Iterator[None]:
    """Compute in the block in true fp32, by deterministic algorithms, whatever other threads do; for inference of any kind."""
    if device.type != "cuda":
        yield
        return
    with GPU_LOCK.shared(), deterministic_algorithms():
        yield


def exclusive_gpu(device: torch.device) -> AbstractContextManager[None]:
    """Keep other threads from inference and captures on GPUs in the block, if the device is one."""
    return GPU_LOCK.exclusive() if device.type == "cuda" else nullcontext()


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Let GPUs round the factors of fp32 products and convolutions to 10 bits (TF32): half the time, where they bind.

    This is a setting of the process, hence for one who is alone in `GPU`.
    """
    _say_tf32()
    before = fp32_precision()
    set_fp32_precision("tf32", "tf32", "tf32")
    try:
        yield
    finally:
        set_fp32_precision(*before)


@functools.cache
def _say_tf32() -> None:
    logger.info("training steps: what is in fp32 is computed in TF32; validation and all else in true fp32")


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the block's work on a GPU in a stream that no other block has; at the end, wait for that work."""
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

    PyTorch hands out 32 streams in turns, the first again after the last, and cuBLAS's workspace is the stream's. One that came
    twice would mix two trainings up; hence ours are kept, and of a priority that nobody else in the process asks for.
    """
    with _idle_lock:
        idle = _idle_streams[torch.cuda.current_device()]
        return idle.pop() if idle else torch.cuda.Stream(priority=-1)
