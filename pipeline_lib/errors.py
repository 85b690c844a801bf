"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: its message is one line that says what is wrong, where, and how to mend it.

    Commands print that line alone. Any other exception is a bug and shows its traceback. It is a `ValueError` so that
    pydantic's validators may raise it.
    """


class UnusableError(UserError):
    """What an address gave is not what was asked for; another address may give it."""
