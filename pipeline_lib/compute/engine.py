"""One way to run work: `run_at` calls a function in this process, or on Ray where there are several places to work.

Here one ledger counts cores and the GPU. On Ray, Ray does (`pipeline_lib.compute.ray_engine`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

from pipeline_lib.artifacts.shipping import Shipper
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.gpus import count_gpus
from pipeline_lib.compute.needs import (
    Callback,
    Callbacks,
    EndedError,
    Ledger,
    Needs,
    WorkerLostError,
    add_seconds_waited,
    take_seconds_waited,
)


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


__all__ = ["Needs", "WorkerLostError", "cancel_work", "num_gpus", "open_engine", "run_at", "take_seconds_waited"]

_engine: Engine | None = None
_broken_off: threading.Thread | None = None
"""The thread whose engine ended by an exception. It has left that run; the run's other threads may still call `run_at`."""


@contextmanager
def open_engine(
    address: str | None = None, *, is_local_ray: bool = False, num_gpus: int = 0, shipper: Shipper | None = None
) -> Iterator[None]:
    """Open the process's engine for the block; `run_at` uses it.

    Args:
        address: HOST:PORT of a Ray cluster's head, or "auto" for RAY_ADDRESS or the cluster on this machine. This machine must
            be one of its nodes. A cluster's token comes from RAY_AUTH_TOKEN, from the file RAY_AUTH_TOKEN_PATH or from
            ~/.ray/auth_token, as on the nodes.
        is_local_ray: whether to start Ray on this machine; it listens on loopback only, with a token of its own.
        num_gpus: GPUs of this machine. Without Ray one of them is used.
        shipper: brings the files that calls name to where they run; None if all nodes share the workspace's folder.

    Raises:
        RuntimeError: an engine is open already.
    """
    global _engine, _broken_off
    if _engine is not None:
        raise RuntimeError("an engine is open already")
    _engine = engine = _make_engine(address, is_local_ray, num_gpus, shipper)
    _broken_off = None
    try:
        yield
    except BaseException:
        _broken_off = threading.current_thread()
        raise
    finally:
        try:
            engine.close()
        finally:
            _engine = None


def _make_engine(address: str | None, is_local_ray: bool, num_gpus: int, shipper: Shipper | None) -> Engine:
    if address is None and not is_local_ray:
        return _Here(num_gpus, shipper)
    from pipeline_lib.compute.ray_engine import RayEngine

    return RayEngine(address, num_gpus, shipper)


def run_at(
    function: Callable[..., Any], *args: Any, needs: Needs | None = None, callbacks: Callbacks | None = None, **kwargs: Any
) -> Any:
    """Return `function(*args, **kwargs, **callbacks)`, called by the open engine once its needs are free.

    Without an open engine it is called at once, in this process, unless a thread of a run that was broken off asks. A callback
    takes one value, which can be pickled; the function gets nothing back. A callback that raises is logged as a warning and
    not called again.

    Raises:
        Exception: what the function raises; a RuntimeError with its text if it cannot be pickled.
        WorkerLostError: the worker process or its node died.
        UserError: no node can hold the needs, or the cluster cannot be reached.
        RuntimeError: the run has ended.
    """
    callbacks = {name: Callback(name, callback) for name, callback in (callbacks or {}).items()}
    if _engine is None:
        if _broken_off not in (None, threading.current_thread()):
            # Here the work would go on after Ctrl-C, with another number of threads and so with other last bits.
            raise EndedError("not begun: the run has ended")
        return function(*args, **kwargs, **callbacks)
    return _engine.run(function, args, kwargs, needs or Needs(), callbacks)


def num_gpus() -> int:
    """Return how many GPUs the open engine has; without one, those of this machine, of which one is used."""
    return min(count_gpus(), 1) if _engine is None else _engine.num_gpus()


def cancel_work() -> None:
    """Cancel the open engine's work: what waits does not begin, what runs on Ray ends at once."""
    if _engine is not None:
        _engine.cancel()


class _Here:
    """Calls functions in the calling thread."""

    def __init__(self, num_gpus: int, shipper: Shipper | None) -> None:
        self._num_gpus, self._shipper = min(num_gpus, 1), shipper
        self._ledger = Ledger(num_cores(), self._num_gpus)

    def num_gpus(self) -> int:
        return self._num_gpus

    def run(self, work: Callable[..., Any], args: Any, kwargs: Any, needs: Needs, callbacks: Callbacks) -> Any:
        with self._shipper.here((args, kwargs)) if self._shipper else nullcontext():
            started = time.monotonic()
            with self._ledger.grant(needs):
                add_seconds_waited(time.monotonic() - started)
                return work(*args, **kwargs, **callbacks)

    def cancel(self) -> None:
        self._ledger.end()

    def close(self) -> None:
        self._ledger.end()
