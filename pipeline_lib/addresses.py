"""Addresses of files, and how they may be shown: without passwords and signatures."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

HIDDEN = "***"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
SIGNING = re.compile(
    r"x-(amz|goog|oss)-.*|.*(sig|token|expires|credential|secret|passw|auth|policy|api_?key|access_?key|key-pair).*"
    r"|se|sp|sr|ss|st|sv|ske|sks|skt|skv|skoid|sktid|sip|spr|srt",
    re.IGNORECASE,
)
"""Names in a query that sign an address (Amazon, Google, Azure, CloudFront and the like) rather than say what it is of."""


@dataclass(frozen=True)
class Address:
    """Where a file can be had: an http(s) address or a local path, and what is known of the file there."""

    url: str
    """May carry `user:password@`, for HTTP's basic authentication."""
    sha256: str | None = None
    size_bytes: int | None = None
    kind: str = "an archive"
    """What is expected there, for messages."""

    @property
    def is_remote(self) -> bool:
        """Whether the file must be transferred, rather than used where it lies."""
        return "://" in self.url


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


def redact_text(text: str) -> str:
    """Return a text, such as an error's message, with every address in it redacted."""
    return ADDRESS.sub(lambda match: redact(match[0]), text)


def identity(address: str) -> str:
    """Return what tells an address from others: the redacted address, and a digest of its query without what signs it.

    Addresses of one file that are signed anew have the same identity.
    """
    query = [pair for pair in parse_qsl(urlsplit(address).query, keep_blank_values=True) if not SIGNING.fullmatch(pair[0])]
    return f"{redact(address)} {hashlib.sha256(repr(query).encode()).hexdigest()[:16]}" if query else redact(address)


def redact_all(values: Any) -> Any:
    """Return nested JSON values with every address in them redacted."""
    if isinstance(values, dict):
        return {key: redact_all(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_all(value) for value in values]
    return redact(values) if isinstance(values, str) and "://" in values else values
