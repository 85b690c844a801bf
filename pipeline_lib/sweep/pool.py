"""The workers as the process that hands out trials sees them."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from types import TracebackType
from typing import Any

from pipeline_lib.sweep.worker import Died, Message, Objective, work

SECONDS_TO_END = 10.0
"""Longest that a worker whose pipe is closed takes to leave its exit code."""


class Worker:
    """One worker process and the pipe to it."""

    def __init__(self, objective: Objective, gpu: str | None) -> None:
        """Start the process. Not forked: the caller may hold threads, locks and a GPU."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.is_ready = False
        """Whether it has started and imported all that it needs."""
        self._process = context.Process(target=work, args=(theirs, objective, gpu), daemon=True)
        with _without_interrupts():
            self._process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def send(self, message: Any) -> None:
        """Send parameters, or an answer; if the worker is dead, `receive` will tell."""
        with suppress(OSError):
            self.pipe.send(message)

    def receive(self) -> Message:
        """Wait for the worker's next message, its death among them."""
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            return Died(self._why_dead())
        return message

    def _why_dead(self) -> str:
        self._process.join(SECONDS_TO_END)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes in the block deaf to Ctrl-C: it reaches the parent too, which ends them and says so once."""
    resource_tracker.ensure_running()  # started with the first process, it would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Workers that are alive; a context manager that ends them, whatever they are doing."""

    def __init__(self, objective: Objective, gpus: Sequence[str | None]) -> None:
        """Take what to compute, and for each worker the GPU it computes on."""
        self._objective, self._gpus = objective, gpus
        self.workers: list[Worker] = []

    def __enter__(self) -> Pool:
        try:
            for gpu in self._gpus:
                self.workers.append(Worker(self._objective, gpu))
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end_all()

    def _end_all(self) -> None:
        while self.workers:
            self.workers.pop().end()

    def receive(self) -> list[tuple[Worker, Message]]:
        """Wait until workers have something to say; who dies is no longer among them."""
        ready = connection.wait([worker.pipe for worker in self.workers])
        messages = [(worker, worker.receive()) for worker in self.workers if worker.pipe in ready]
        for worker, message in messages:
            if isinstance(message, Died):
                self.workers.remove(worker)
                worker.end()
        return messages
