"""What runs in Ray's worker processes: the call of a function, and the events and log lines that it sends while it runs.

Workers import no Prefect and no MLflow.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import ray
from ray import cloudpickle

from pipeline_lib.compute.cores import core_numbers

SECONDS_BETWEEN_BATCHES = 0.1
SECONDS_TO_SEND = 10.0
OURS = "pipeline_lib"
"""The logger whose INFO lines are sent to the driver; of others, warnings are."""

logger = logging.getLogger(__name__)

Event = tuple[str | None, bytes]
"""The name of a callback, or None for a log record; and the pickled value."""


@dataclass(frozen=True)
class Outcome:
    """How a call ended: its pickled result, or its pickled exception."""

    pickled: bytes
    has_failed: bool
    has_sent: bool
    """Whether it sent events."""
    seconds: float
    """Duration of the call."""


class EventActor:
    """Holds the events of all calls until the driver takes them. One small process on the driver's node."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, list[Event]]] = []

    def append(self, number: int, batch: list[Event]) -> None:
        """Add events of a call."""
        self._batches.append((number, batch))

    def take(self) -> list[tuple[int, list[Event]]]:
        """Return the events that came since the last time."""
        batches, self._batches = self._batches, []
        return batches


class GpuActor:
    """A warm process on one GPU, with its share of the node's cores."""

    def __init__(self) -> None:
        node = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
        cores = gpu_cores(int(ray.get_gpu_ids()[0]), int(node["Resources"]["GPU"]))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        set_num_threads(len(cores))

    def node_id(self) -> str:
        """Return the ID of the node that it is on."""
        return ray.get_runtime_context().get_node_id()

    def call(self, *args: Any) -> Outcome:
        """Call a function, as `call_function` does; several at once, in threads."""
        return call_function(*args)


def gpu_cores(gpu: int, num_gpus: int) -> list[int]:
    """Return a GPU's share of the cores; all of them where there are fewer cores than GPUs."""
    return core_numbers()[gpu::num_gpus] or core_numbers()


def call_on_cores(num_threads: int, *args: Any) -> Outcome:
    """Call a function, as `call_function` does, with so many threads an operation."""
    set_num_threads(num_threads)
    return call_function(*args)


def set_num_threads(number: int) -> None:
    """Set PyTorch's threads, whether or not it is imported already."""
    os.environ["OMP_NUM_THREADS"] = str(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)


def call_function(number: int, packed: bytes, callbacks: Sequence[str], events: Any) -> Outcome:
    """Call a function, send its events and log lines under the call's number, and return how it ended.

    Args:
        number: the call's.
        packed: the pickled context manager that yields the function, args and kwargs. What cannot be unpickled fails like the
            function itself.
        callbacks: names of the function's callbacks.
        events: the event actor.
    """
    started = time.monotonic()
    with _Outbox(number, events) as outbox:
        try:
            named = {name: partial(outbox.put, name) for name in callbacks}
            with pickle.loads(packed) as (function, args, kwargs):
                pickled, has_failed = cloudpickle.dumps(function(*args, **kwargs, **named)), False
        except Exception as error:
            pickled, has_failed = pickle.dumps(_portable(error)), True
    return Outcome(pickled, has_failed, outbox.has_sent, time.monotonic() - started)


def _portable(error: Exception) -> Exception:
    """Return the error with the worker's traceback as a note; as a RuntimeError if it cannot be pickled."""
    where = "".join(traceback.format_exception(error)).rstrip()
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process of node {ray.util.get_node_ip_address()}:\n{where}")
    return error


class _Outbox:
    """Sends the events of a call in batches, from a thread of its own, so that the work never waits.

    Ray takes a worker whose main thread waits in `ray.get` for idle, and would start another one in its place.
    """

    def __init__(self, number: int, events: Any) -> None:
        self._number, self._events = number, events
        self._batch: list[Event] = []
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._sender = threading.Thread(target=self._send_until_closed, daemon=True)
        self._unsent: set[str] = set()
        self.has_sent = False

    def __enter__(self) -> _Outbox:
        _log_handler().outboxes[threading.get_ident()] = self
        self._sender.start()
        return self

    def __exit__(self, *exception: object) -> None:
        del _log_handler().outboxes[threading.get_ident()]
        self._is_closed.set()
        self._sender.join()

    def put(self, name: str | None, value: Any) -> None:
        """Send a value as it is now; a value that cannot be pickled is a warning."""
        try:
            event = (name, cloudpickle.dumps(value))
        except Exception as error:
            if name is not None and name not in self._unsent:
                self._unsent.add(name)
                logger.warning("%s: its value cannot be sent: %s: %s", name, type(error).__name__, error)
            return
        with self._lock:
            self._batch.append(event)

    def _send_until_closed(self) -> None:
        while not self._is_closed.wait(SECONDS_BETWEEN_BATCHES):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            batch, self._batch = self._batch, []
        if batch:
            self.has_sent = True
            with suppress(Exception):  # telling never fails the work
                self._events.append.remote(self._number, batch).future().result(SECONDS_TO_SEND)


class _LogHandler(logging.handlers.QueueHandler):
    """Sends log records, made fit for another process, with the events of the call in whose thread they were made."""

    def __init__(self) -> None:
        super().__init__(SimpleQueue())  # type: ignore[arg-type] # never used
        self.outboxes: dict[int, _Outbox] = {}

    def enqueue(self, record: logging.LogRecord) -> None:
        # A thread that a call started is none of ours: its lines go to the call that began last.
        outbox = self.outboxes.get(threading.get_ident()) or next(reversed(list(self.outboxes.values())), None)
        if outbox is not None:
            outbox.put(None, record)


_handlers: list[_LogHandler] = []
_handlers_lock = threading.Lock()


def _log_handler() -> _LogHandler:
    """Return the process's log handler, which replaces Ray's the first time."""
    with _handlers_lock:
        if not _handlers:
            _handlers.append(_LogHandler())
            logging.basicConfig(handlers=list(_handlers), format="%(message)s", level=logging.WARNING, force=True)
            logging.getLogger(OURS).setLevel(logging.INFO)
            logging.captureWarnings(True)
        return _handlers[0]
