"""How many trainings a machine holds, on machines that are made up."""

from types import SimpleNamespace

import pytest
import torch
from pipeline_lib.workers.worker import Place

from pipeline_lib.compute import planning as hardware
from pipeline_lib.compute.planning import gpu_places, plan_trainings

GIB = 1024**3
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """Set cores, memory and each GPU's memory, both in GiB."""

    def build(cores=8, memory=64, gpus=(), visible=None):
        monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: SimpleNamespace(total=memory * GIB))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=gpus[index] * GIB))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return build


@pytest.mark.parametrize(
    ("cores", "memory", "features", "trainings", "workers", "processes", "threads"),
    [
        (2, 16, 1, 5, None, 2, 1),  # a laptop: one thread a training
        (2, 16, 1, 1, None, 1, 2),
        (1, 16, 1, 5, None, 1, 1),
        (64, 256, 1, 30, None, 8, 8),
        (64, 256, 1, 3, None, 3, 21),
        (8, 18, 3, 8, None, 3, 2),  # 18, 13, 8 GiB are left, of which half may hold features
        (8, 16, 9, 8, None, 1, 8),  # from disk
        (8, 16, 1, 8, 3, 3, 2),
        (2, 16, 1, 8, 5, 5, 1),
    ],
)
def test_on_cores(machine, cores, memory, features, trainings, workers, processes, threads):
    machine(cores, memory)
    plan = plan_trainings(CPU, features * GIB, trainings, workers)
    assert plan.places == (Place(threads=threads),) * processes
    assert (plan.slots, plan.at_once) == (1, processes)


@pytest.mark.parametrize(
    ("gpus", "features", "trainings", "workers", "num_places", "slots", "at_once"),
    [
        ((78,), 5, 30, None, 1, 4, 4),
        ((78,), 5, 3, None, 1, 3, 3),
        ((20,), 5, 30, None, 1, 3, 3),  # half of the 15 GiB that the features leave
        ((18,), 50, 30, None, 1, 4, 4),  # the features are not on the GPU
        ((3,), 1, 30, None, 1, 1, 1),
        ((78, 12), 1, 30, None, 2, 2, 4),
        ((78, 78, 78), 5, 5, None, 3, 2, 5),
        ((78, 78, 78), 5, 2, None, 2, 1, 2),
        ((78, 78), 5, 30, 3, 2, 2, 3),
    ],
)
def test_on_gpus(machine, gpus, features, trainings, workers, num_places, slots, at_once):
    machine(cores=16, memory=500, gpus=gpus)
    plan = plan_trainings(GPU, features * GIB, trainings, workers)
    assert [place.gpu for place in plan.places] == [str(number) for number in range(num_places)]
    assert (plan.slots, plan.at_once) == (slots, at_once)


def test_gpus_keep_the_names_they_have_outside_and_share_the_cores(machine):
    machine(cores=5, gpus=(78, 78), visible="3, GPU-abc")
    assert gpu_places() == (Place("3", cores=frozenset({0, 2, 4})), Place("GPU-abc", cores=frozenset({1, 3})))


def test_a_gpu_is_no_reason_to_leave_the_cpu(machine):
    machine(cores=2, gpus=(78,))
    assert plan_trainings(CPU, GIB, 8).places == (Place(threads=1),) * 2
