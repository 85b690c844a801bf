"""The workers as the process sees them that hands out the work."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from pipeline_lib.errors import UserError
from pipeline_lib.workers.worker import Answer, Died, Done, Failed, Message, Place, Ready, Request, Said, work

SECONDS_TO_END = 10.0
"""Longest that a worker whose pipe is closed takes to leave its exit code."""

Inbox = SimpleQueue[tuple["Call", Message]]


class DiedError(Exception):
    """A worker died; the message says how."""


class Call:
    """A function that a worker calls."""

    def __init__(self, number: int, worker: Worker, inbox: Inbox) -> None:
        self.number, self.inbox = number, inbox
        self._worker = worker

    def answer(self, value: Any) -> None:
        """Let a callback return, whose `Said` has come."""
        self._worker.send(self.number, Answer(value))

    def stop(self) -> None:
        """End the call in the callback whose `Said` has come; a `Done` follows."""
        self._worker.send(self.number, Answer(stops=True))


class Worker:
    """One worker process, and the thread that listens to it."""

    def __init__(self, place: Place, on_death: Callable[[Worker, str], None]) -> None:
        """Start the process. Not forked: the caller may hold threads, locks and a GPU."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.place = place
        self._process = context.Process(target=work, args=(theirs, place), daemon=True)
        with _without_interrupts():
            self._process.start()
        theirs.close()  # so that the pipe ends when the worker does
        self._on_death = on_death
        self._lock = threading.Lock()
        self._is_ready = threading.Event()
        self._is_alive = True
        self._reason = ""
        self._calls: dict[int, Call] = {}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def num_calls(self) -> int:
        """Calls under way."""
        return len(self._calls)

    def wait(self) -> None:
        """Wait until the process has started, or is dead."""
        self._is_ready.wait()

    def submit(self, number: int, request: Request, inbox: Inbox) -> Call:
        """Have a function called; what comes of it is put into `inbox`, its worker's death among it."""
        call = Call(number, self, inbox)
        with self._lock:
            if self._is_alive:
                self._calls[number] = call
            else:
                inbox.put((call, Died(self._reason)))
        self.send(number, request)
        return call

    def send(self, number: int, item: Request | Answer) -> None:
        """Send something; if the worker is dead, the inboxes are told."""
        with self._lock, suppress(OSError):
            self._pipe.send((number, item))

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._deliver(*self._pipe.recv())
        self._bury()

    def _deliver(self, number: int | None, message: Message) -> None:
        if isinstance(message, Ready):
            self._is_ready.set()
        elif number is not None:
            call = self._calls.pop(number) if isinstance(message, Done | Failed) else self._calls[number]
            call.inbox.put((call, message))
        elif isinstance(message, logging.LogRecord):
            log(message)

    def _bury(self) -> None:
        reason = self._why_dead()
        with self._lock:
            self._is_alive, self._reason = False, reason
            orphans, self._calls = self._calls, {}
        self._on_death(self, reason)
        self._is_ready.set()
        for call in orphans.values():
            call.inbox.put((call, Died(reason)))

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
        self._listener.join()
        self._pipe.close()


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

    def __init__(self, places: Sequence[Place]) -> None:
        """Start a worker for each place."""
        self._places = tuple(places)
        self.workers: list[Worker] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.last_death = ""
        """Why the last one died that is no longer among them."""
        try:
            for place in places:
                self.workers.append(Worker(place, self._remove))
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """End all workers; what is under way gets `Died`."""
        for worker in list(self.workers):
            worker.end()

    def _remove(self, worker: Worker, reason: str) -> None:
        with self._lock, suppress(ValueError):
            self.workers.remove(worker)
            self.last_death = reason

    def replace_dead(self) -> None:
        """Start a worker at each place whose worker died."""
        with self._lock:
            missing = Counter(self._places) - Counter(worker.place for worker in self.workers)
            self.workers += [Worker(place, self._remove) for place in missing.elements()]

    def wait(self) -> None:
        """Wait until all workers have started."""
        for worker in list(self.workers):
            worker.wait()

    def submit(
        self, inbox: Inbox, function: Callable[..., Any], *args: Any, callbacks: Sequence[str] = (), **kwargs: Any
    ) -> Call:
        """Have the least busy worker call `function(*args, **kwargs)`, and put its messages into `inbox`.

        For each name in `callbacks` it gets a function of one argument as a keyword argument, which returns when its `Said`
        is answered, if it is not stopped then.

        Raises:
            UserError: no worker is left.
        """
        request = Request(pickle.dumps((function, args, kwargs, tuple(callbacks))))
        with self._lock:
            if not self.workers:
                raise UserError(f"no worker is left: {self.last_death}")
            worker = min(self.workers, key=lambda worker: worker.num_calls)
            return worker.submit(next(self._numbers), request, inbox)

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        callbacks: Mapping[str, Callable[[Any], Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Have a worker call `function(*args, **kwargs)` and return what it returns; `callbacks` are called in this thread.

        Raises:
            Exception: what the function raises, as it is if it can be pickled.
            DiedError: the worker died.
            UserError: none is left.
        """
        inbox: Inbox = SimpleQueue()
        callbacks = callbacks or {}
        self.submit(inbox, function, *args, callbacks=tuple(callbacks), **kwargs)
        while True:
            call, message = inbox.get()
            match message:
                case Said(callback, value):
                    _answer(call, callbacks[callback], value)
                case Done(result):
                    return result
                case Failed(error):
                    raise error
                case Died(reason):
                    raise DiedError(reason)
                case logging.LogRecord():
                    log(message)


def _answer(call: Call, callback: Callable[[Any], Any], value: Any) -> None:
    try:
        answer = callback(value)
    except BaseException:
        call.stop()
        raise
    call.answer(answer)


def log(record: logging.LogRecord) -> None:
    """Let a worker's log line come out where one of this process would."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
