"""One way to run work: `run_at` calls a function in this process, or on Ray where there are several places to work.

Here one ledger counts cores and the GPU. On Ray, Ray does (`pipeline_lib.compute.ray_engine`).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.gpus import count_gpus
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


class Engine(Protocol):
    """Where work runs."""

    def run(self, work: Callable[..., Any], args: Any, kwargs: Any, needs: Needs, callbacks: Callbacks) -> Any:
        """Return `work(*args, **kwargs, **callbacks)`."""

    def num_gpus(self) -> int:
        """Return how many GPUs there are."""

    def cancel(self) -> None:
        """Let nothing more begin, and stop what runs in other processes."""

    def close(self) -> None:
        """Cancel, and free what the engine holds."""


_engine: Engine | None = None


@contextmanager
def open_engine(address: str | None = None, *, is_local_ray: bool = False, num_gpus: int = 0) -> Iterator[None]:
    """Open the process's engine for the block; `run_at` uses it.

    Args:
        address: HOST:PORT of a Ray cluster's head, or "auto" for RAY_ADDRESS or the cluster on this machine. This machine must
            be one of its nodes. A cluster's token comes from RAY_AUTH_TOKEN, from the file RAY_AUTH_TOKEN_PATH or from
            ~/.ray/auth_token, as on the nodes.
        is_local_ray: whether to start Ray on this machine; it listens on loopback only, with a token of its own.
        num_gpus: GPUs of this machine. Without Ray one of them is used.

    Raises:
        RuntimeError: an engine is open already.
    """
    global _engine
    if _engine is not None:
        raise RuntimeError("an engine is open already")
    _engine = engine = _make_engine(address, is_local_ray, num_gpus)
    try:
        yield
    finally:
        try:
            engine.close()
        finally:
            _engine = None


def _make_engine(address: str | None, is_local_ray: bool, num_gpus: int) -> Engine:
    if address is None and not is_local_ray:
        return _Here(num_gpus)
    from pipeline_lib.compute.ray_engine import RayEngine

    return RayEngine(address, num_gpus)


def run_at(
    function: Callable[..., Any], *args: Any, needs: Needs | None = None, callbacks: Callbacks | None = None, **kwargs: Any
) -> Any:
    """Return `function(*args, **kwargs, **callbacks)`, called by the open engine once its needs are free.

    Without an open engine it is called at once, in this process. A callback takes one value, which can be pickled; the function
    gets nothing back. A callback that raises is logged as a warning and not called again.

    Raises:
        Exception: what the function raises; a RuntimeError with its text if it cannot be pickled.
        WorkerLostError: the worker process or its node died.
        UserError: no node can hold the needs, or the cluster cannot be reached.
        RuntimeError: the run has ended.
    """
    callbacks = {name: Callback(name, callback) for name, callback in (callbacks or {}).items()}
    if _engine is None:
        return function(*args, **kwargs, **callbacks)
    return _engine.run(function, args, kwargs, needs or Needs(), callbacks)


def num_gpus() -> int:
    """Return how many GPUs the open engine has; without one, those of this machine, of which one is used."""
    return min(count_gpus(), 1) if _engine is None else _engine.num_gpus()


def cancel_work() -> None:
    """Cancel the open engine's work: what waits does not begin, what runs on Ray ends at once."""
    if _engine is not None:
        _engine.cancel()


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


class _Here:
    """Calls functions in the calling thread."""

    def __init__(self, num_gpus: int) -> None:
        self._num_gpus = min(num_gpus, 1)
        self._ledger = Ledger(num_cores(), self._num_gpus)

    def num_gpus(self) -> int:
        return self._num_gpus

    def run(self, work: Callable[..., Any], args: Any, kwargs: Any, needs: Needs, callbacks: Callbacks) -> Any:
        with self._ledger.grant(needs):
            return work(*args, **kwargs, **callbacks)

    def cancel(self) -> None:
        self._ledger.end()

    def close(self) -> None:
        self._ledger.end()
