"""Seeds and deterministic algorithms for the length of a training, put back afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils import deterministic

_TRAINING = threading.Lock()
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def reproducible(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed torch's global generators, and with `deterministic` refuse algorithms whose result differs from run to run.

    The generators and the setting belong to the process, so trainings in threads of one process wait for each other here.
    """
    devices = range(torch.cuda.device_count())
    with _TRAINING, torch.random.fork_rng(devices), _deterministic_algorithms() if deterministic else nullcontext():
        torch.manual_seed(seed)
        yield


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")  # cuBLAS is deterministic only with a workspace of its own
    torch.use_deterministic_algorithms(True)
    module: Any = deterministic  # a module with a property, which mypy does not see
    fills = module.fill_uninitialized_memory
    module.fill_uninitialized_memory = False  # it is for finding bugs, and costs up to a third of the time
    try:
        yield
    finally:
        module.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before, warn_only=warned)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
