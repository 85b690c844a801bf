"""A worker: a process that calls functions, several at once if asked to, and says what comes of them."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

OURS = "pipeline_lib"
"""The loggers whose every line is sent to the parent; of others, warnings are."""


@dataclass(frozen=True)
class Place:
    """Where a worker computes."""

    gpu: str | None = None
    """The GPU it sees, as CUDA_VISIBLE_DEVICES names it; None leaves it what its parent sees."""
    threads: int | None = None
    """Threads of an operation on the CPU; None: as many as there are cores."""
    cores: frozenset[int] | None = None
    """The cores that it and its own children may use; None: all."""


@dataclass(frozen=True)
class Request:
    """A function to be called: pickled apart, so that what cannot be unpickled fails alone."""

    call: bytes
    """The function, its arguments, and the names of the callbacks it takes."""


@dataclass(frozen=True)
class Answer:
    """What a callback returned; or that the call is to end there."""

    value: Any = None
    stops: bool = False


@dataclass(frozen=True)
class Ready:
    """The worker has started; what takes time from here on is work."""


@dataclass(frozen=True)
class Said:
    """A callback was called; the call waits for the answer."""

    callback: str
    value: Any


@dataclass(frozen=True)
class Done:
    """What the function returned, or None if it was stopped."""

    result: Any = None


@dataclass(frozen=True)
class Failed:
    """What the function raised."""

    error: Exception


@dataclass(frozen=True)
class Died:
    """The worker is no more."""

    reason: str


Message = Ready | Said | Done | Failed | Died | logging.LogRecord


class StoppedError(Exception):
    """Raised in a callback: the call is to end here."""


def work(connection: Connection, place: Place) -> None:
    """Call what comes through `connection` until it closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _settle(place)
    _Worker(connection).run()


class _Worker:
    """The calls under way. Messages carry a call's number, or None where they belong to none."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._answers: dict[int, SimpleQueue[Answer]] = {}
        self._call = threading.local()

    def run(self) -> None:
        self._send_log()
        self._send(None, Ready())
        with suppress(EOFError, OSError):  # the parent has no more to do, or is no more
            while True:
                number, item = self._connection.recv()
                if isinstance(item, Answer):
                    self._answers[number].put(item)
                else:
                    self._answers[number] = SimpleQueue()
                    threading.Thread(target=self._work, args=(number, item), daemon=True).start()

    def _work(self, number: int, request: Request) -> None:
        self._call.number = number
        try:
            function, args, kwargs, callbacks = pickle.loads(request.call)
            says = {name: partial(self._say, number, name) for name in callbacks}
            message: Message = Done(function(*args, **kwargs, **says))
        except StoppedError:
            message = Done()
        except Exception as error:
            message = Failed(_portable(error))
        self._send(number, message)
        del self._answers[number]

    def _say(self, number: int, callback: str, value: Any) -> Any:
        self._send(number, Said(callback, value))
        answer = self._answers[number].get()
        if answer.stops:
            raise StoppedError
        return answer.value

    def _send(self, number: int | None, message: Message) -> None:
        with self._sending, suppress(OSError):  # once the parent is gone, nobody listens
            self._connection.send((number, message))

    def _send_log(self) -> None:
        """Let log lines come out where the parent's do; from here they would cross whatever it draws on the terminal."""
        handler = _Sender(lambda record: self._send(getattr(self._call, "number", None), record))
        logging.basicConfig(handlers=[handler], format="%(message)s", level=logging.WARNING, force=True)
        logging.getLogger(OURS).setLevel(logging.INFO)
        logging.captureWarnings(True)


class _Sender(logging.handlers.QueueHandler):
    """Hands records, made fit for another process, to a function."""

    def __init__(self, send: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(SimpleQueue())  # type: ignore[arg-type] # never used
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        self._send(record)


def _settle(place: Place) -> None:
    """Take the place, before anything that would look for GPUs or count cores is imported, and after."""
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    if place.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.cores)
    if place.threads:
        os.environ["OMP_NUM_THREADS"] = str(place.threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(place.threads)


def _portable(error: Exception) -> Exception:
    """Return the error, with where it was raised; as a RuntimeError if it would not get through the pipe."""
    where = "".join(traceback.format_exception(error)).rstrip()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.__traceback__ = None
    error.add_note(f"in a worker process:\n{where}")
    return error


def _end_with_parent() -> None:
    """End at once when the parent does, however it does, and whatever is under way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
