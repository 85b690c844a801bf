"""Addresses of files, and functions to show them without passwords and signatures."""

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
"""Query parameters that sign an address (Amazon, Google, Azure, CloudFront and others) and do not identify the file."""


@dataclass(frozen=True)
class Address:
    """An http(s) address or local path of a file, with its expected properties."""

    url: str
    """May contain `user:password@` for HTTP basic authentication."""
    sha256: str | None = None
    size_bytes: int | None = None
    kind: str = "an archive"
    """Expected kind of file, for messages."""

    @property
    def is_remote(self) -> bool:
        """Whether the file must be downloaded."""
        return "://" in self.url


def redact(address: str) -> str:
    """Return the address with its user information and the values of its query replaced by `***`; paths are unchanged."""
    try:
        parts = urlsplit(address)
    except ValueError:  # for example an unclosed bracket; the address may still contain a password
        return re.sub(r"(?<=://).*@", f"{HIDDEN}@", address)
    if not parts.netloc:
        return address
    _, at, host = parts.netloc.rpartition("@")
    query = "&".join(f"{name.partition('=')[0]}={HIDDEN}" for name in parts.query.split("&")) if parts.query else ""
    return urlunsplit(parts._replace(netloc=f"{HIDDEN}@{host}" if at else host, query=query))


def redact_text(text: str) -> str:
    """Return a text, such as an error message, with all addresses redacted."""
    return ADDRESS.sub(lambda match: redact(match[0]), text)


def identity(address: str) -> str:
    """Return the redacted address with a digest of its query without signing parameters.

    Differently signed addresses of one file have the same identity.
    """
    query = [pair for pair in parse_qsl(urlsplit(address).query, keep_blank_values=True) if not SIGNING.fullmatch(pair[0])]
    return f"{redact(address)} {hashlib.sha256(repr(query).encode()).hexdigest()[:16]}" if query else redact(address)


def redact_all(values: Any) -> Any:
    """Return nested JSON values with all addresses redacted."""
    if isinstance(values, dict):
        return {key: redact_all(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_all(value) for value in values]
    return redact(values) if isinstance(values, str) and "://" in values else values
