"""How many trials a machine holds at once."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

import psutil
import torch

from pipeline_lib.models.batches import MEMORY_SHARE

MOST_WORKERS = 8
"""Of ten trials under way the sampler knows no result and the pruner no median; with more of them at once a search becomes a
lottery."""
MOST_WORKERS_PER_GPU = 4
"""Without MPS, processes take turns on a GPU; more of them only fill the gaps that one leaves between its steps."""
WORKER_BYTES = 2 * 1024**3
"""What a worker takes beside the features: PyTorch, a CUDA context, a batch with all that is kept for its gradients."""


@dataclass(frozen=True)
class Plan:
    """How the trials are spread over the machine."""

    gpus: tuple[str | None, ...]
    """For each worker the GPU it computes on, as CUDA_VISIBLE_DEVICES names it; None on the CPU."""
    threads: int
    """Of each worker, on the CPU."""


def plan_workers(device: torch.device, features_bytes: int, workers: int | None) -> Plan:
    """Spread `workers` over the machine; None: as many as it holds, each with a copy of the features.

    On the CPU a worker for each core rather than threads: a model's thirty small steps in time leave little to share, so that
    two workers of one thread finish 1.4 to 1.8 times the epochs of one with two threads. With more threads than cores they
    wait for each other, and finish a thirtieth.
    """
    cores = len(os.sched_getaffinity(0))
    in_memory = _num_fitting(psutil.virtual_memory().available, features_bytes)  # where they also are on their way to a GPU
    gpus = _gpu_places(features_bytes) if device.type == "cuda" else [None] * cores
    num_workers = workers or min(len(gpus), in_memory, cores, MOST_WORKERS)
    return Plan(tuple(itertools.islice(itertools.cycle(gpus), num_workers)), max(1, cores // num_workers))


def _gpu_places(features_bytes: int) -> list[str | None]:
    """Return a GPU's name for each worker that one holds, in turns."""
    free_bytes = _free_gpu_bytes()
    rooms = {name: min(_num_fitting(free, features_bytes), MOST_WORKERS_PER_GPU) for name, free in free_bytes.items()}
    return [name for turn in range(MOST_WORKERS_PER_GPU) for name, room in rooms.items() if turn < room]


def _num_fitting(free_bytes: int, features_bytes: int) -> int:
    """Return how many workers, one after the other, find the share of memory that is still free large enough; at least 1."""
    number = 0
    while features_bytes < MEMORY_SHARE * free_bytes and number < MOST_WORKERS:
        free_bytes -= features_bytes + WORKER_BYTES
        number += 1
    return max(1, number)


def _free_gpu_bytes() -> dict[str, int]:
    """Return the free memory of each GPU that this process sees, by its name in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    indices = range(torch.cuda.device_count())
    names = visible.split(",") if visible else [str(index) for index in indices]
    return {names[index].strip(): torch.cuda.mem_get_info(index)[0] for index in indices}
