"""Context managers for seeds and deterministic algorithms."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils import deterministic

from pipeline_lib.compute.devices import CUBLAS_DETERMINISTIC, CUBLAS_WORKSPACE

_generators_lock = threading.RLock()


@contextmanager
def reproducible(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed torch's global generators in the block, and with `deterministic` require deterministic algorithms.

    Only one thread at a time can be in such a block (see `seeded`).
    """
    with seeded(seed), deterministic_algorithms() if deterministic else nullcontext():
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators in the block and restore them afterwards; other threads wait to enter."""
    devices = range(torch.cuda.device_count())
    with _generators_lock, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


class ProcessSetting:
    """A process-wide setting that the first thread to need it applies and the last one restores."""

    def __init__(self, apply: Callable[[], AbstractContextManager[None]]) -> None:
        """Store the context manager that applies and restores the setting."""
        self._apply = apply
        self._applied = ExitStack()
        self._num_users = 0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Apply the setting in the block."""
        with self._lock:
            if self._num_users == 0:
                self._applied.enter_context(self._apply())
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    self._applied.close()


@contextmanager
def _use_deterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC)
    torch.use_deterministic_algorithms(True)
    module: Any = deterministic  # a module with a property, which mypy does not see
    fills = module.fill_uninitialized_memory
    module.fill_uninitialized_memory = False  # a slow debugging aid
    try:
        yield
    finally:
        module.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before, warn_only=warned)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


deterministic_algorithms = ProcessSetting(_use_deterministic_algorithms)
"""Make PyTorch use deterministic algorithms in the block, and raise where there is none."""
