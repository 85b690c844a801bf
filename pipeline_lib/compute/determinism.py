"""Seeds and deterministic algorithms for the length of a training, put back afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils import deterministic

from pipeline_lib.compute.devices import CUBLAS_DETERMINISTIC, CUBLAS_WORKSPACE

_GENERATORS = threading.RLock()


@contextmanager
def reproducible(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed torch's global generators, and with `deterministic` refuse algorithms whose result differs from run to run.

    Blocks in threads of one process wait for each other here, as in `seeded`.
    """
    with seeded(seed), deterministic_algorithms() if deterministic else nullcontext():
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators for the block. They belong to the process: other threads wait for the block's end."""
    devices = range(torch.cuda.device_count())
    with _GENERATORS, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


class ProcessSetting:
    """A setting of the process, made by the first thread that needs it and put back by the last."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        """Take what makes the setting and puts it back."""
        self._make = make
        self._made = ExitStack()
        self._num_users = 0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Have the setting made in the block."""
        with self._lock:
            if self._num_users == 0:
                self._made.enter_context(self._make())
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    self._made.close()


@contextmanager
def _refuse_others() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC)
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


deterministic_algorithms = ProcessSetting(_refuse_others)
"""Refuses, in its block, algorithms whose result differs from run to run."""
