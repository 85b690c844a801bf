"""Background calls to a tracking server, so that an outage does not stop the run."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable

from pipeline_lib.addresses import redact_text

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 30.0
"""Retry interval during an outage."""

Call = Callable[[], object]


class Background:
    """A thread that makes queued calls in order.

    A call that fails because of an outage is retried after a pause, before the calls behind it. A call that fails otherwise is
    dropped. Both log a warning; neither raises in the caller's thread.
    """

    def __init__(self, server: str, is_outage: Callable[[Exception], bool], pause_seconds: float = PAUSE_SECONDS) -> None:
        """Start the thread in a copy of the caller's context.

        Args:
            server: what the calls write to, for warnings.
            is_outage: whether an exception means that the server is unreachable.
            pause_seconds: retry interval during an outage.
        """
        self._server, self._is_outage, self._pause_seconds = redact_text(server), is_outage, pause_seconds
        self._calls: deque[Call] = deque()
        self._changed = threading.Condition()
        self._is_down = self._is_closing = False
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True)
        self._thread.start()

    def call(self, call: Call) -> None:
        """Queue a call and return immediately."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true, the queue is empty, or there is an outage."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or not self._calls or self._is_down)

    def discard(self) -> None:
        """Drop the calls that have not started."""
        with self._changed:
            self._calls.clear()

    def close(self) -> None:
        """Make the remaining calls, with one last attempt during an outage, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while call := self._next():
            try:
                call()
            except Exception as error:
                if self._is_outage(error):
                    self._pause(error)
                    continue
                logger.warning("%s: a record of this run was not written: %s", self._server, _one_line(error))
            self._finish(call)

    def _next(self) -> Call | None:
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._is_closing)
            return self._calls[0] if self._calls else None

    def _finish(self, call: Call) -> None:
        with self._changed:
            self._is_down = False
            if self._calls and self._calls[0] is call:  # else it was discarded meanwhile
                self._calls.popleft()
            self._changed.notify_all()

    def _pause(self, error: Exception) -> None:
        """Wait for the next attempt, or give up if closing."""
        with self._changed:
            if self._is_closing:
                text = "%s does not answer; %d records of this run were not written: %s"
                logger.warning(text, self._server, len(self._calls), _one_line(error))
                self._calls.clear()
            elif not self._is_down:
                logger.warning("%s does not answer; the run continues, records are queued: %s", self._server, _one_line(error))
            self._is_down = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closing, timeout=self._pause_seconds)


def _one_line(error: BaseException) -> str:
    """Return the root cause of an error in one line, without secrets."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return redact_text(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
