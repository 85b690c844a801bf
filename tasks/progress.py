"""Progress of the stages under way: counted by tasks in any thread, shown by whoever listens."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

Listener = Callable[[str, float, float | None], None]
"""Called with (stage, done, total or None if it is not known)."""

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_listeners: list[Listener] = []
_done: dict[str, float] = {}
_total: dict[str, float | None] = {}


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` at every step from now on, in the thread that works; returns what stops it.

    A listener must be quick and safe across threads. One that raises is not called again.
    """
    with _lock:
        _listeners.append(listener)
    return lambda: _stop(listener)


def _stop(listener: Listener) -> None:
    with _lock:
        if listener in _listeners:
            _listeners.remove(listener)


def begin() -> None:
    """Forget what an earlier run in this process has counted."""
    with _lock:
        _done.clear()
        _total.clear()


def expect(stage: str, total: float) -> None:
    """Say how much a stage has to do in all; some of it may be done already."""
    with _lock:
        _total[stage] = total
    _tell(stage)


def advance(stage: str, amount: float = 1) -> None:
    """Count `amount` more of a stage as done."""
    with _lock:
        _done[stage] = _done.get(stage, 0) + amount
    _tell(stage)


def finish(stage: str) -> None:
    """Count all of a stage as done, also what turned out not to be needed."""
    with _lock:
        _done[stage] = _total[stage] = _total.get(stage) or 1
    _tell(stage)


def transfer(stage: str) -> Callable[[int, int | None], None]:
    """Return a callback (bytes done, bytes in all or None) for a download; it tells its listeners twice a second at most."""
    last = 0.0

    def on_bytes(done_bytes: int, total_bytes: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.5 and done_bytes != total_bytes:
            return
        last = now
        with _lock:
            _done[stage], _total[stage] = done_bytes, total_bytes
        _tell(stage)

    return on_bytes


def _tell(stage: str) -> None:
    with _lock:
        listeners, done, total = tuple(_listeners), _done.get(stage, 0), _total.get(stage)
    for listener in listeners:
        try:
            listener(stage, done, total)
        except Exception as error:
            _stop(listener)
            logger.warning("progress is no longer shown: %s: %s", type(error).__name__, error)
