"""How many trials a machine holds, on machines that are made up."""

from types import SimpleNamespace

import pytest
import torch

from pipeline_lib.sweep import hardware
from pipeline_lib.sweep.hardware import plan_workers

GIB = 1024**3


@pytest.fixture
def machine(monkeypatch):
    """Set cores, memory and each GPU's free memory, both in GiB."""

    def build(cores=8, memory=64, gpus=(), visible=None):
        monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * GIB))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (gpus[index] * GIB, 80 * GIB))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return build


@pytest.mark.parametrize(
    ("cores", "memory", "features", "asked", "workers", "threads"),
    [
        (2, 16, 1, None, 2, 1),  # a laptop: one thread a worker
        (1, 16, 1, None, 1, 1),
        (64, 256, 1, None, 8, 8),  # more at once would be a lottery
        (8, 18, 3, None, 3, 2),  # 18, 13, 8 GiB are free, of which half may hold features
        (8, 16, 9, None, 1, 8),  # from disk
        (8, 16, 1, 3, 3, 2),
        (2, 16, 1, 5, 5, 1),
    ],
)
def test_on_cores(machine, cores, memory, features, asked, workers, threads):
    machine(cores, memory)
    plan = plan_workers(torch.device("cpu"), features * GIB, asked)
    assert (plan.gpus, plan.threads) == ((None,) * workers, threads)


@pytest.mark.parametrize(
    ("gpus", "features", "asked", "wanted"),
    [
        ((78,), 5, None, ["0"] * 4),
        ((20,), 5, None, ["0"] * 2),  # 20, then 13 GiB are free; of 6 half would not do
        ((20,), 50, None, ["0"]),
        ((78, 8), 1, None, ["0", "1", "0", "1", "0", "0"]),
        ((78, 78, 78), 5, None, ["0", "1", "2"] * 2 + ["0", "1"]),
        ((78, 78), 5, 3, ["0", "1", "0"]),
    ],
)
def test_on_gpus(machine, gpus, features, asked, wanted):
    machine(cores=16, memory=500, gpus=gpus)
    assert list(plan_workers(torch.device("cuda"), features * GIB, asked).gpus) == wanted


def test_gpus_keep_the_names_they_have_outside(machine):
    machine(gpus=(78, 78), visible="3, GPU-abc")
    assert plan_workers(torch.device("cuda"), GIB, 2).gpus == ("3", "GPU-abc")


def test_a_gpu_is_no_reason_to_leave_the_cpu(machine):
    machine(cores=2, gpus=(78,))
    assert plan_workers(torch.device("cpu"), GIB, None).gpus == (None, None)
