"""A worker: a process that trains with what it is sent, and asks after every epoch whether to go on."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pipeline_lib.params import ModelParams
from pipeline_lib.sweep.trials import Row

logger = logging.getLogger(__name__)

OnEpoch = Callable[[Row], None]
Objective = Callable[[ModelParams, OnEpoch], None]
"""Trains with some parameters and reports each epoch. It is sent to other processes, so it must be picklable."""

LONGEST_REASON = 300


@dataclass(frozen=True)
class Ready:
    """The worker has started; what takes time from here on is training."""


@dataclass(frozen=True)
class Epoch:
    """An epoch is over; the worker waits to hear whether to go on."""

    row: Row


@dataclass(frozen=True)
class Ended:
    """A training is over, or was stopped, or could not be done with these parameters."""

    error: str | None = None


@dataclass(frozen=True)
class Died:
    """The worker is no more."""

    reason: str


Message = Ready | Epoch | Ended | Died | logging.LogRecord


class StoppedError(Exception):
    """The training is to end here."""


def work(connection: Connection, objective: Objective, gpu: str | None) -> None:
    """Train with each parameters that come through `connection` until it closes, seeing only the GPU of this name, if any.

    A ValueError is about the parameters, and the next ones may do. After any other error, out of memory above all, the state
    of a GPU is not to be trusted, so that it ends the worker.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _send_log(connection)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        connection.send(Ready())
        while True:
            connection.send(_train(objective, connection.recv(), connection))
    except (EOFError, ConnectionError):
        return  # the parent has no more to do, or is no more
    except Exception as error:
        logger.exception("a worker of the sweep ends")
        connection.send(Died(_one_line(error)))


def _train(objective: Objective, params: ModelParams, connection: Connection) -> Ended:
    def on_epoch(row: Row) -> None:
        connection.send(Epoch(row))
        if not connection.recv():
            raise StoppedError

    try:
        objective(params, on_epoch)
    except StoppedError:
        return Ended()
    except ValueError as error:
        return Ended(str(error))
    return Ended()


def _end_with_parent() -> None:
    """End at once when the parent does, however it does, and not at the end of an epoch."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]


class _PipeHandler(logging.handlers.QueueHandler):
    """Sends records to the parent, whose handlers know where they belong."""

    queue: Any  # a pipe will do

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # once the parent is gone, nobody listens
            self.queue.send(record)


def _send_log(connection: Connection) -> None:
    """Let warnings come out where the parent's do; from here they would cross whatever it draws on the terminal."""
    pipe: Any = connection
    logging.basicConfig(handlers=[_PipeHandler(pipe)], format="%(message)s", level=logging.WARNING, force=True)
    logging.captureWarnings(True)
