"""Exceptions for mistakes that a user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can fix. The message is one line that says what is wrong, where, and how to fix it.

    Commands print only that line. Any other exception is a bug and shows its traceback. It is a `ValueError`, so that
    pydantic's validators can raise it.
    """


class UnusableError(UserError):
    """The content of an address is not usable; another address may have the right one."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Begin the message of a user's mistake that is found in the block with what it concerns, such as a stream."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
