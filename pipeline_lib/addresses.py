"""Addresses as they may be shown: without passwords and signatures."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "***"


def redact(address: str) -> str:
    """Return the address with its user information and its query's values replaced by `***`; a path comes back as it is.

    A password stands before the `@`; signed addresses carry their signature in the query.
    """
    try:
        parts = urlsplit(address)
    except ValueError:  # such as an unclosed bracket: it cannot be opened, but may hold a password all the same
        return re.sub(r"(?<=://).*@", f"{HIDDEN}@", address)
    if not parts.netloc:
        return address
    _, at, host = parts.netloc.rpartition("@")
    query = "&".join(f"{name.partition('=')[0]}={HIDDEN}" for name in parts.query.split("&")) if parts.query else ""
    return urlunsplit(parts._replace(netloc=f"{HIDDEN}@{host}" if at else host, query=query))


def redact_all(values: Any) -> Any:
    """Return nested JSON values with every address in them redacted."""
    if isinstance(values, dict):
        return {key: redact_all(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_all(value) for value in values]
    return redact(values) if isinstance(values, str) and "://" in values else values
