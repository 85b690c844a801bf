"""What work needs, who grants it, and how work tells what happens: the ground of both engines."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

Callbacks = Mapping[str, Callable[[Any], Any]]

ROUNDING = 1e-9
"""Shares such as a third do not add up exactly."""


@dataclass(frozen=True)
class Needs:
    """What a piece of work occupies while it runs."""

    cpus: float = 1
    """Cores; `math.inf` means every core of one node."""
    gpus: float = 0
    """Share of one GPU, in [0, 1]. Work with shares of one GPU runs in threads of one process that stays warm."""
    memory_bytes: int = 0
    """Memory that a Ray node must have free of other demands; not counted in this process, nor for work on a GPU."""

    def __post_init__(self) -> None:
        if not (self.cpus >= 0 and 0 <= self.gpus <= 1 and self.memory_bytes >= 0):
            raise ValueError(f"{self}: cpus and memory_bytes are at least 0, gpus is in [0, 1]")


class WorkerLostError(Exception):
    """The worker process or its node died before the work ended: the work may be tried again."""


class EndedError(RuntimeError):
    """The run has ended: the work did not begin, or was stopped."""


class _Waiting(threading.local):
    """Seconds that this thread's work waited for its needs."""

    seconds = 0.0


_waiting = _Waiting()


def add_seconds_waited(seconds: float) -> None:
    """Count time that the calling thread's work waited before it began."""
    _waiting.seconds += max(0.0, seconds)


def take_seconds_waited() -> float:
    """Return the seconds that the calling thread's work has waited since the last call."""
    seconds, _waiting.seconds = _waiting.seconds, 0.0
    return seconds


class Callback:
    """A callback that cannot fail the work: its first exception is a warning, and its last call."""

    def __init__(self, name: str, callback: Callable[[Any], Any]) -> None:
        self._name, self._callback = name, callback
        self._has_failed = False

    def __call__(self, value: Any) -> None:
        """Hand on a value."""
        if self._has_failed:
            return
        try:
            self._callback(value)
        except Exception as error:
            self._has_failed = True
            logger.warning("%s: %s: %s; it is not called again", self._name, type(error).__name__, error)


class Ledger:
    """Grants cores and shares of GPUs to waiting threads, in order of arrival.

    A demand that does not fit yet reserves what it needs from those behind it, so that it is not starved; what is left goes on.
    """

    def __init__(self, cores: float, num_gpus: int) -> None:
        self._cores = self._free_cores = cores
        self._free_gpus = [1.0] * num_gpus
        self._waiting: list[_Demand] = []
        self._changed = threading.Condition()
        self._has_ended = False

    @contextmanager
    def grant(self, needs: Needs) -> Iterator[int]:
        """Hold the needs for the block, once they are free; yields which GPU the share is of.

        Raises:
            UserError: there is no such machine.
            EndedError: the run has ended meanwhile.
        """
        demand = _Demand(self._cores if math.isinf(needs.cpus) else needs.cpus, needs.gpus)
        with self._changed:
            try:
                self._waiting.append(demand)
                self._changed.notify_all()  # wait_for tests before it waits
                self._changed.wait_for(lambda: self._is_granted(demand))
            except BaseException:
                self._waiting.remove(demand)
                self._changed.notify_all()
                raise
        try:
            yield demand.gpu
        finally:
            with self._changed:
                self._take(demand, -1)
                self._changed.notify_all()

    def end(self) -> None:
        """Grant nothing more: what waits raises EndedError."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def close_gpu(self, gpu: int) -> None:
        """Grant no more shares of a GPU."""
        with self._changed:
            self._free_gpus[gpu] = -math.inf
            self._changed.notify_all()

    def _is_granted(self, demand: _Demand) -> bool:
        if self._has_ended:
            raise EndedError("not begun: the run has ended")
        self._check(demand)
        cores, gpus = self._free_cores, list(self._free_gpus)
        for waiting in self._waiting:
            waiting.gpu = max(range(len(gpus)), key=gpus.__getitem__, default=0)
            fits = waiting.cores <= cores + ROUNDING and (not waiting.gpus or waiting.gpus <= gpus[waiting.gpu] + ROUNDING)
            if waiting is demand:
                break
            cores -= waiting.cores
            if waiting.gpus:
                gpus[waiting.gpu] -= waiting.gpus
        if fits:
            self._waiting.remove(demand)
            self._take(demand)
        return fits

    def _take(self, demand: _Demand, sign: int = 1) -> None:
        self._free_cores -= sign * demand.cores
        if demand.gpus:
            self._free_gpus[demand.gpu] -= sign * demand.gpus

    def _check(self, demand: _Demand) -> None:
        if demand.cores > self._cores:
            raise UserError(f"{demand.cores:g} cores are needed at once, and there are {self._cores:g}: ask for fewer")
        if demand.gpus and max(self._free_gpus, default=-math.inf) == -math.inf:
            raise UserError("a GPU is needed, and there is none: set the device to cpu, or use a machine with a GPU")


@dataclass(eq=False)
class _Demand:
    cores: float
    gpus: float
    gpu: int = 0
