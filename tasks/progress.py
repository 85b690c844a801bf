"""Progress of running stages: counted by tasks in any thread, passed to listeners."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

Listener = Callable[[str, float, float | None], None]
"""Called with (stage, done, total or None if unknown)."""

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_listeners: list[Listener] = []
_done: dict[str, float] = {}
_total: dict[str, float | None] = {}


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` on every update, in the working thread; return a function that unsubscribes it.

    A listener must be fast and thread-safe. One that raises is unsubscribed.
    """
    with _lock:
        _listeners.append(listener)
    return lambda: _stop(listener)


def _stop(listener: Listener) -> None:
    with _lock:
        if listener in _listeners:
            _listeners.remove(listener)


def begin() -> None:
    """Reset the counts of an earlier run in this process."""
    with _lock:
        _done.clear()
        _total.clear()


def expect(stage: str, total: float) -> None:
    """Set the total of a stage, which may have started already."""
    with _lock:
        _total[stage] = total
    _notify(stage)


def advance(stage: str, amount: float = 1) -> None:
    """Add `amount` to what a stage has done."""
    with _lock:
        _done[stage] = _done.get(stage, 0) + amount
    _notify(stage)


def grow(stage: str, expected: float, done: float) -> None:
    """Add to the total of a stage whose work comes bit by bit, and to what it has done."""
    with _lock:
        _total[stage] = (_total.get(stage) or 0) + expected
        _done[stage] = _done.get(stage, 0) + done
    _notify(stage)


def finish(stage: str) -> None:
    """Mark a stage as done, including work that was not needed."""
    with _lock:
        _done[stage] = _total[stage] = _total.get(stage) or 1
    _notify(stage)


def transfer(stage: str) -> Callable[[int, int | None], None]:
    """Return a download callback (bytes done, total or None); it notifies listeners at most twice a second."""
    last = 0.0

    def on_bytes(done_bytes: int, total_bytes: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.5 and done_bytes != total_bytes:
            return
        last = now
        with _lock:
            _done[stage], _total[stage] = done_bytes, total_bytes
        _notify(stage)

    return on_bytes


def _notify(stage: str) -> None:
    with _lock:
        listeners, done, total = tuple(_listeners), _done.get(stage, 0), _total.get(stage)
    for listener in listeners:
        try:
            listener(stage, done, total)
        except Exception as error:
            _stop(listener)
            logger.warning("progress is no longer shown: %s: %s", type(error).__name__, error)
