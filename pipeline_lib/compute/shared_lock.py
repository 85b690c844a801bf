"""Something that many may use at once, and now and then one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Places for threads: each takes one, or one thread takes all. Who is in does not enter again: it would wait for itself."""

    def __init__(self, places: int) -> None:
        """Make a room for as many threads at once; more of them wait."""
        self._num_places = places
        self._places = threading.Semaphore(places)
        self._door = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Take a place for the block, beside others; wait while somebody is alone, or waits for the others to leave."""
        with self._door:
            self._places.acquire()
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Take all places for the block, each as it becomes free."""
        taken = 0
        with self._door:  # closed, or those who leave and come back at once would keep this one waiting for ever
            try:
                while taken < self._num_places:
                    self._places.acquire()
                    taken += 1
                yield
            finally:
                for _ in range(taken):
                    self._places.release()
