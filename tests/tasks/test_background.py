"""What is told to a server in the background: in order, again after an outage, and never at the expense of who tells."""

from __future__ import annotations

import threading

import pytest

from tasks.background import Background


def is_outage(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


@pytest.fixture
def background():
    return Background("a server", is_outage, pause_seconds=0.01)


class Flaky:
    """Fails so many times, then keeps what it is told."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.told = failures, error, []

    def tell(self, value: int) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error
        self.told.append(value)


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_calls_are_made_in_order_and_all_of_them_before_it_closes(background):
    told = []
    for number in range(100):
        background.call(lambda number=number: told.append(number))
    background.close()
    assert told == list(range(100))


def test_what_an_outage_delays_comes_later_in_order_and_warns_once(background, caplog):
    server = Flaky(3, ConnectionError("refused by http://me:secret@host/"))
    for number in range(3):
        background.call(lambda number=number: server.tell(number))
    background.wait(lambda: len(server.told) == 3)
    while len(server.told) < 3:  # `wait` returns when the server is out of reach
        threading.Event().wait(0.01)
    background.close()
    assert server.told == [0, 1, 2]
    (message,) = messages(caplog)
    assert message.startswith("a server does not answer; the run continues")
    assert "http://***@host/" in message


def test_what_is_refused_is_dropped_and_the_rest_comes(background, caplog):
    server = Flaky(1, ValueError("no such run"))
    for number in range(3):
        background.call(lambda number=number: server.tell(number))
    background.close()
    assert server.told == [1, 2]
    assert messages(caplog) == ["a server: a record of this run was not written: ValueError: no such run"]


def test_who_tells_does_not_wait_and_the_end_is_one_attempt_away(caplog):
    background = Background("a server", is_outage, pause_seconds=3600)
    server = Flaky(99, ConnectionError("refused"))
    for number in range(3):
        background.call(lambda number=number: server.tell(number))
    background.wait(lambda: False)  # until the first attempt has failed
    background.close()
    assert server.failures == 99 - 2
    assert messages(caplog)[-1] == "a server does not answer; 3 records of this run were not written: ConnectionError: refused"


def test_discarded_calls_are_not_made(background):
    told, begun, goes_on = [], threading.Event(), threading.Event()
    background.call(lambda: (begun.set(), goes_on.wait(30)))
    background.call(lambda: told.append(1))
    begun.wait(30)
    background.discard()
    background.call(lambda: told.append(2))
    goes_on.set()
    background.close()
    assert told == [2]
