"""What a training run needs of the machine, so that as many run side by side as it holds.

On a GPU they run in threads of one process, each on a CUDA stream of its own: processes would take turns on it. On a CPU they
run in processes: a model's many small steps in time are calls from Python, which threads of one process make one at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import psutil

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.engine import Needs, num_gpus
from pipeline_lib.compute.gpus import smallest_gpu_bytes
from pipeline_lib.errors import UserError
from pipeline_lib.params import Device

MEMORY_SHARE = 0.5
"""Share of the free memory, the device's or the machine's, that features may fill; the rest is for models and gradients."""
MAX_PROCESSES = 8
"""Training runs side by side on a CPU."""
MAX_PER_GPU = 4
"""Training runs side by side on a GPU (docs/performance.md)."""
TRAINING_BYTES = 2 * 1024**3
"""Memory of a training run beside the features: PyTorch, a batch, and the activations kept for its gradients."""
CONTROLS_GPU_SHARE = 0.1
"""Share of a GPU that the controls of one fold take beside the training runs."""


class SideBySide(NamedTuple):
    """Number of training runs of one model that may run concurrently."""

    number: int
    is_limit: bool
    """Whether the number is the user's limit, rather than the number of folds and seeds."""


def uses_gpu(device: Device, *, key: str) -> bool:
    """Return whether work with this `device` parameter, called `key`, runs on a GPU of the open engine.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if device != "cpu" and num_gpus():
        return True
    if device == "cuda":
        raise UserError(f"{key} = cuda: there is no GPU; use `auto` or `cpu`, or fix the driver")
    return False


def whole_device(device: Device, *, key: str) -> Needs:
    """Return the needs of work that fills a device by itself: one GPU, or all cores of a node."""
    return Needs(cpus=0, gpus=1) if uses_gpu(device, key=key) else Needs(cpus=math.inf)


def training_needs(device: Device, features_bytes: int, at_once: int, *, is_limit: bool = False, key: str) -> Needs:
    """Return what one of several training runs needs that read the same features.

    The answer depends on the machine and on the arguments alone, never on its load: with another number of threads an operation
    can differ in its last bits, and a training run that is resumed must not.

    Args:
        device: where they run, as in the parameters.
        features_bytes: size of the features that they read.
        at_once: training runs of one kind; only these run side by side on a CPU.
        is_limit: whether `at_once` is what the user asked for, rather than what could be of use.
        key: the parameter that `device` comes from.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if uses_gpu(device, key=key):
        return Needs(cpus=0, gpus=_gpu_share(features_bytes, at_once if is_limit else None))
    cores = num_cores()
    processes = at_once if is_limit else min(at_once, cores, _max_processes(features_bytes))
    if processes == 1:
        return Needs(cpus=math.inf)
    cpus = cores / processes
    return Needs(cpus=math.ceil(cpus) if cpus > 1 else cpus, memory_bytes=features_bytes + TRAINING_BYTES)


def _gpu_share(features_bytes: int, limit: int | None) -> float:
    """Return the share of a GPU that leaves room for as many training runs as its memory holds, or for as many as `limit`."""
    side_by_side = _max_per_gpu(smallest_gpu_bytes(), features_bytes)
    per_gpu = limit / num_gpus() if limit else min(side_by_side, max(1, num_cores() // num_gpus()))
    return min(1.0, (1 - CONTROLS_GPU_SHARE) / per_gpu)


def _max_processes(features_bytes: int) -> int:
    """Return how many processes, one after the other, find the share of memory that is left large enough; at least 1."""
    left_bytes = psutil.virtual_memory().total
    number = 0
    while features_bytes < MEMORY_SHARE * left_bytes and number < MAX_PROCESSES:
        left_bytes -= features_bytes + TRAINING_BYTES
        number += 1
    return max(1, number)


def _max_per_gpu(total_bytes: int | None, features_bytes: int) -> int:
    """Return how many training runs a GPU has room for, beside one copy of the features if that fits; at least 1."""
    if total_bytes is None:  # the GPUs are on other machines
        return MAX_PER_GPU
    left_bytes = total_bytes - features_bytes if features_bytes < MEMORY_SHARE * total_bytes else total_bytes
    return max(1, min(int(MEMORY_SHARE * left_bytes) // TRAINING_BYTES, MAX_PER_GPU))
