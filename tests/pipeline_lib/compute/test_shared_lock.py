"""Several shared holders at once, or one exclusive one, whatever goes wrong inside."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline_lib.compute.shared_lock import SharedLock


def is_free(lock: SharedLock) -> bool:
    """Whether somebody can hold it alone."""
    entered = threading.Event()

    def enter() -> None:
        with lock.exclusive():
            entered.set()

    threading.Thread(target=enter, daemon=True).start()
    return entered.wait(5)


def test_as_many_as_there_are_holders_share_it() -> None:
    lock, together = SharedLock(3), threading.Barrier(3)

    def enter() -> None:
        with lock.shared():
            together.wait(5)

    with ThreadPoolExecutor(3) as pool:
        for entered in [pool.submit(enter) for _ in range(3)]:
            entered.result()


def test_an_exclusive_holder_is_the_only_one() -> None:
    """Readers count themselves; a writer must find none, and another writer neither."""
    lock, inside, seen = SharedLock(4), [], []

    def enter(number: int) -> None:
        with lock.exclusive() if number % 5 == 0 else lock.shared():
            inside.append(number)
            if number % 5 == 0:
                time.sleep(0.002)
                seen.append(list(inside))
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(100)))
    assert seen == [[number] for number, *_ in seen]
    assert len(seen) == 20
    assert is_free(lock)


def test_an_exclusive_holder_is_not_starved_by_those_who_come_later() -> None:
    lock, stop = SharedLock(2), threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with lock.shared():
                time.sleep(0.001)

    guests = [threading.Thread(target=come_and_go) for _ in range(6)]
    for guest in guests:
        guest.start()
    try:
        assert is_free(lock)
    finally:
        stop.set()
        for guest in guests:
            guest.join()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_an_error_releases_it_too(mode: str, error: type[BaseException]) -> None:
    lock = SharedLock(2)
    with pytest.raises(error), getattr(lock, mode)():
        raise error
    assert is_free(lock)


def test_interrupted_while_waiting_it_gives_back_what_it_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, calls = SharedLock(3), []
    acquire = lock._holders.acquire

    def interrupted_at_the_third() -> bool:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return acquire()

    with monkeypatch.context() as patch:
        patch.setattr(lock._holders, "acquire", interrupted_at_the_third)
        with pytest.raises(KeyboardInterrupt), lock.exclusive():
            pass
    assert is_free(lock)
