"""What training runs need, on machines that are made up."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from pipeline_lib.compute import planning
from pipeline_lib.compute.engine import Needs
from pipeline_lib.compute.planning import TRAINING_BYTES, training_needs, uses_gpu, whole_device
from pipeline_lib.errors import UserError

GIB = 1024**3
KEY = "train.device"


@pytest.fixture
def machine(monkeypatch):
    """Set cores, memory in GiB, and the GPUs' number and the smallest one's memory in GiB, if it is known."""

    def build(cores=8, memory=64, gpus=0, gpu_memory=None):
        monkeypatch.setattr(planning, "num_cores", lambda: cores)
        monkeypatch.setattr(planning.psutil, "virtual_memory", lambda: SimpleNamespace(total=memory * GIB, available=0))
        monkeypatch.setattr(planning, "num_gpus", lambda: gpus)
        monkeypatch.setattr(planning, "smallest_gpu_bytes", lambda: gpu_memory and gpu_memory * GIB)

    return build


@pytest.mark.parametrize(
    ("cores", "memory", "features", "at_once", "is_limit", "cpus"),
    [
        (2, 16, 1, 5, False, 1),  # a laptop: one thread a training run
        (64, 256, 1, 30, False, 8),  # at most eight side by side
        (64, 256, 1, 3, False, 22),  # 21.3 cores each
        (8, 18, 3, 8, False, 3),  # 18, 13, 8 GiB are left, of which half may hold features: three, of 2.7 cores each
        (8, 16, 1, 8, True, 1),
        (8, 16, 1, 3, True, 3),
        (8, 16, 9, 2, True, 4),  # from disk, and asked for
        (2, 16, 1, 5, True, 0.4),  # more than there are cores, as asked
        (4, 16, 1, 16, True, 0.25),
    ],
)
def test_cores_and_memory_of_several(machine, cores, memory, features, at_once, is_limit, cpus):
    machine(cores, memory)
    needs = training_needs("cpu", features * GIB, at_once, is_limit=is_limit, key=KEY)
    assert needs == Needs(cpus=cpus, memory_bytes=features * GIB + TRAINING_BYTES)


@pytest.mark.parametrize(
    ("cores", "memory", "features", "at_once", "is_limit"),
    [
        (2, 16, 1, 1, False),
        (1, 16, 1, 5, False),
        (8, 16, 9, 8, False),  # from disk: they would take turns at it
        (8, 16, 1, 1, True),
    ],
)
def test_one_takes_all_cores(machine, cores, memory, features, at_once, is_limit):
    machine(cores, memory)
    assert training_needs("cpu", features * GIB, at_once, is_limit=is_limit, key=KEY) == Needs(cpus=math.inf)


@pytest.mark.parametrize(
    ("gpus", "gpu_memory", "cores", "features", "at_once", "is_limit", "per_gpu"),
    [
        (1, 78, 16, 5, 30, False, 4),
        (1, 78, 16, 5, 2, False, 4),  # how many there are is no matter: others may come
        (1, 20, 16, 5, 30, False, 3),  # half of the 15 GiB that the features leave
        (1, 18, 16, 50, 30, False, 4),  # the features are not on the GPU
        (1, 78, 2, 5, 30, False, 2),  # a core each
        (2, 78, 6, 5, 30, False, 3),
        (4, 78, 2, 5, 30, False, 1),
        (1, None, 16, 5, 30, False, 4),  # the GPU is on another machine
        (1, 78, 16, 5, 2, True, 2),
        (1, 78, 16, 5, 6, True, 6),  # more than planned, as asked
        (2, 78, 16, 5, 3, True, 1.5),
    ],
)
def test_shares_of_a_gpu_leave_room_for_the_controls(machine, gpus, gpu_memory, cores, features, at_once, is_limit, per_gpu):
    machine(cores, gpus=gpus, gpu_memory=gpu_memory)
    needs = training_needs("auto", features * GIB, at_once, is_limit=is_limit, key=KEY)
    assert (needs.cpus, needs.memory_bytes) == (0, 0)
    assert needs.gpus == pytest.approx(0.9 / per_gpu)


def test_a_limit_below_the_number_of_gpus_asks_for_no_more_than_one(machine):
    machine(gpus=4, gpu_memory=78)
    assert training_needs("cuda", GIB, 1, is_limit=True, key=KEY) == Needs(cpus=0, gpus=1)


def test_a_gpu_is_no_reason_to_leave_the_cpu(machine):
    machine(cores=2, gpus=1, gpu_memory=78)
    assert training_needs("cpu", GIB, 8, key=KEY) == Needs(cpus=1, memory_bytes=GIB + TRAINING_BYTES)


@pytest.mark.parametrize(
    ("device", "gpus", "uses"), [("auto", 1, True), ("cuda", 2, True), ("cpu", 1, False), ("auto", 0, False)]
)
def test_a_device_is_a_gpu_if_there_is_one(machine, device, gpus, uses):
    machine(gpus=gpus)
    assert uses_gpu(device, key=KEY) is uses
    assert whole_device(device, key=KEY) == (Needs(cpus=0, gpus=1) if uses else Needs(cpus=math.inf))


def test_no_gpu_where_one_is_asked_for_is_a_users_mistake(machine):
    machine(gpus=0)
    for plan in (uses_gpu, whole_device, lambda device, key: training_needs(device, GIB, 2, key=key)):
        with pytest.raises(UserError, match=r"^finetune\.device = cuda: there is no GPU"):
            plan("cuda", key="finetune.device")
