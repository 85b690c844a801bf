"""A shared/exclusive lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """Lock with up to `max_holders` shared holders or one exclusive holder, which is not starved. Not reentrant."""

    def __init__(self, max_holders: int) -> None:
        """Create an unlocked lock."""
        self._max_holders = max_holders
        self._holders = threading.Semaphore(max_holders)
        self._entering = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock in the block together with other shared holders."""
        with self._entering:
            self._holders.acquire()
        try:
            yield
        finally:
            self._holders.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock in the block alone."""
        num_acquired = 0
        with self._entering:  # held, so that new shared holders cannot starve this one
            try:
                while num_acquired < self._max_holders:
                    self._holders.acquire()
                    num_acquired += 1
                yield
            finally:
                for _ in range(num_acquired):
                    self._holders.release()
