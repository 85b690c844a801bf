"""Exceptions for mistakes that a user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can fix. The message is one line that says what is wrong, where, and how to fix it.

    Commands print only that line. Any other exception is a bug and shows its traceback. It is a `ValueError`, so that
    pydantic's validators can raise it.
    """


class UnusableError(UserError):
    """The content of an address is not usable; another address may have the right one."""
