"""How many trainings a machine holds at once.

On a GPU they run in threads of one process, each on a CUDA stream of its own: a training's kernels are small, and fill the gaps
that another one leaves; without MPS, those of several processes would take turns instead. On the CPU they run in processes:
thirty small steps in time are as many calls from Python, which threads of one process would make one at a time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import torch

from pipeline_lib.compute.cores import core_numbers, num_cores
from pipeline_lib.workers.worker import Place

MEMORY_SHARE = 0.5
"""Share of the free memory, the device's or the machine's, that features may fill; the rest is for the model, its gradients
and the neighbours."""
MOST_PROCESSES = 8
"""Trainings at once on a CPU."""
MOST_PER_GPU = 4
"""Trainings at once on a GPU: they took 1.9 to 2.3 times the steps of one, and eight hardly more or fewer, as their Python code
runs in one process (docs/performance.md)."""
TRAINING_BYTES = 2 * 1024**3
"""What a training takes beside the features: PyTorch, a batch with all that is kept for its gradients."""


@dataclass(frozen=True)
class Plan:
    """How work is spread over the machine."""

    places: tuple[Place, ...]
    """One for each process."""
    slots: int
    """Most trainings at once in one of them."""
    at_once: int
    """Trainings at once in all."""


def plan_trainings(device: torch.device, features_bytes: int, trainings: int, workers: int | None = None) -> Plan:
    """Spread so many trainings, which read the same features, over the machine: `workers` at once, or as many as it holds.

    On a GPU the trainings of a process share one copy of the features; a process of the CPU has its own. The plan depends on
    the machine and on the arguments alone, not on the memory that is free at the moment: in another number of threads an
    operation can differ in its last bits, and a training that is resumed must not.

    On the CPU a process for each core rather than threads: a model's thirty small steps in time leave little to share, so that
    two processes of one thread finish 1.4 to 1.8 times the epochs of one with two threads. With more threads than cores they
    wait for each other, and finish a thirtieth.
    """
    if device.type == "cuda":
        return _plan_gpus(features_bytes, trainings, workers)
    cores = num_cores()
    processes = workers or min(trainings, cores, _num_processes(features_bytes))
    return Plan((Place(threads=max(1, cores // processes)),) * processes, slots=1, at_once=processes)


def _plan_gpus(features_bytes: int, trainings: int, workers: int | None) -> Plan:
    places = gpu_places()
    room = min(
        _num_trainings(torch.cuda.get_device_properties(index).total_memory, features_bytes) for index in range(len(places))
    )
    at_once = workers or min(trainings, room * len(places), num_cores())
    places = places[:at_once]
    return Plan(places, slots=-(-at_once // len(places)), at_once=at_once)


def gpu_places() -> tuple[Place, ...]:
    """Return a place for each GPU that this process sees, with its share of the cores."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(count)]
    cores = core_numbers()
    # With fewer cores than GPUs some get none to themselves, and use all.
    return tuple(Place(gpu=name, cores=frozenset(cores[index::count])) for index, name in enumerate(names[:count]))


def _num_processes(features_bytes: int) -> int:
    """Return how many processes, one after the other, find the share of memory that is left large enough; at least 1."""
    left_bytes = psutil.virtual_memory().total
    number = 0
    while features_bytes < MEMORY_SHARE * left_bytes and number < MOST_PROCESSES:
        left_bytes -= features_bytes + TRAINING_BYTES
        number += 1
    return max(1, number)


def _num_trainings(total_bytes: int, features_bytes: int) -> int:
    """Return how many trainings a GPU has room for, beside one copy of the features if that fits; at least 1."""
    left_bytes = total_bytes - features_bytes if features_bytes < MEMORY_SHARE * total_bytes else total_bytes
    return max(1, min(int(MEMORY_SHARE * left_bytes) // TRAINING_BYTES, MOST_PER_GPU))
