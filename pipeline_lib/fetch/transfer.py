"""One file over HTTP: resumed after a break, retried with growing pauses, checked when whole."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import random
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be, if the server says."""

BLOCK_BYTES = 256 * 1024
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may be gone at the next try."""


@dataclass(frozen=True)
class Address:
    """Where a file can be had: an http(s) address or a local path, and the digest of what lies there, if known."""

    url: str
    sha256: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the file must be transferred, rather than used where it lies."""
        return "://" in self.url


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to try again."""

    retries: int = 5
    """Tries in a row that bring nothing new before the address is given up."""
    timeout_seconds: float = 60.0
    """Longest silence."""
    backoff_seconds: float = 1.0
    """Wait before the first retry; it doubles with every further one."""

    def wait_seconds(self, retry: int) -> float:
        """Return the wait before a retry (0, 1, ...), spread at random so that many clients do not return at once."""
        return min(self.backoff_seconds * 2.0 ** min(retry, 16), 60.0) * random.uniform(0.5, 1.5)


class AddressError(Exception):
    """The address does not give the file, and would not if asked again."""


class PassingError(Exception):
    """The transfer broke; another try may go on from there."""


def check_file(path: Path, expected_sha256: str | None) -> None:
    """Raise an `AddressError` for a web page or a file with another digest."""
    with path.open("rb") as file:
        if is_html(file.read(256)):
            raise AddressError("this is a web page (HTML), not the file")
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest() if expected_sha256 else None
    if found != expected_sha256:
        raise AddressError(f"the file is damaged or another one: its SHA-256 is {found}, expected {expected_sha256}")


def is_html(first_bytes: bytes) -> bool:
    """Return whether a file that begins with these bytes is a web page."""
    return first_bytes.removeprefix(b"\xef\xbb\xbf").lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


class Transfer:
    """The transfer of one remote file into a folder."""

    def __init__(self, address: Address, directory: Path, patience: Patience, progress: Progress | None) -> None:
        self.address = address
        self.patience = patience
        self.progress = progress or (lambda done_bytes, total_bytes: None)
        self.url = _checked_url(address.url)
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / _file_name(address.url)
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.state = self.path.with_name(f"{self.path.name}.part.json")

    def run(self) -> Path:
        """Return the whole, checked file."""
        if not self.path.exists():
            self._transfer()
            self._publish()
        return self.path

    def _transfer(self) -> None:
        """Try until the part is whole; only tries that bring nothing new count against the retries."""
        retry, furthest_bytes = 0, self._part_bytes()
        while True:
            try:
                return self._try()
            except PassingError as error:
                if self._part_bytes() > furthest_bytes:
                    retry, furthest_bytes = 0, self._part_bytes()
                if retry >= self.patience.retries:
                    raise AddressError(f"{error}; gave up after {retry + 1} tries") from None
                wait_seconds = self.patience.wait_seconds(retry)
                logger.info("%s: %s; trying again in %.1f s", self.address.url, error, wait_seconds)
                time.sleep(wait_seconds)
                retry += 1

    def _publish(self) -> None:
        try:
            check_file(self.part, self.address.sha256)
        except AddressError:
            self._forget()
            raise
        self.part.replace(self.path)
        self.state.unlink(missing_ok=True)

    def _try(self) -> None:
        offset_bytes, validator = self._resume_point()
        headers = {"User-Agent": "har", "Accept-Encoding": "identity"}
        if offset_bytes:
            headers |= {"Range": f"bytes={offset_bytes}-", "If-Range": validator}
        request = urllib.request.Request(self.url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.patience.timeout_seconds) as response:
                self._receive(response, offset_bytes, validator)
        except urllib.error.HTTPError as error:
            error.close()
            self._judge_status(error, offset_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise self._judge_break(error) from None

    def _judge_break(self, error: Exception) -> Exception:
        """Return what a broken connection means; only a certificate that cannot be trusted is for good."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return AddressError(f"its certificate cannot be trusted: {reason.verify_message}")
        if isinstance(reason, TimeoutError):
            return PassingError(f"silent for {self.patience.timeout_seconds:g} s")
        return PassingError(f"the connection broke: {reason or type(reason).__name__}")

    def _judge_status(self, error: urllib.error.HTTPError, offset_bytes: int) -> None:
        """Return if the part turns out to be whole; else say whether another try makes sense."""
        if error.code == 416 and offset_bytes:
            if _total_bytes(error.headers) == offset_bytes:
                return
            self._forget()
            raise PassingError("the file changed; starting over")
        message = f"HTTP {error.code} {error.reason}"
        raise PassingError(message) if error.code in PASSING_STATUSES else AddressError(message)

    def _receive(self, response: Any, offset_bytes: int, validator: str) -> None:
        resumed = response.status == 206
        if resumed and (not _starts_at(response.headers, offset_bytes) or _validator(response.headers) != validator):
            self._forget()
            raise PassingError("the file changed; starting over")
        if response.headers.get_content_type() == "text/html":
            raise AddressError("the server sent a web page (HTML), not the file")
        done_bytes = offset_bytes if resumed else 0
        total_bytes = _total_bytes(response.headers)
        if (total_bytes or 0) - done_bytes > shutil.disk_usage(self.part.parent).free:
            raise self._full_disk(total_bytes)
        if not resumed:
            self._forget()
            self.state.write_text(json.dumps({"validator": _validator(response.headers)}))
        self._append(response, done_bytes, total_bytes)

    def _append(self, response: Any, done_bytes: int, total_bytes: int | None) -> None:
        """Append what the server sends to the part."""
        with self.part.open("ab", buffering=0) as file:
            while (total_bytes is None or done_bytes < total_bytes) and (block := response.read1(BLOCK_BYTES)):
                self._write(file, block, total_bytes)
                done_bytes += len(block)
                self.progress(done_bytes, total_bytes)
        if total_bytes is not None and done_bytes < total_bytes:
            raise PassingError(f"the connection broke after {done_bytes} of {total_bytes} bytes")

    def _write(self, file: Any, block: bytes, total_bytes: int | None) -> None:
        """Write a block whole; an unbuffered file may take less than all of it at once."""
        try:
            while block:
                block = block[file.write(block) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._full_disk(total_bytes) from None
            raise UserError(f"{self.part}: cannot be written: {error.strerror}") from None

    def _resume_point(self) -> tuple[int, str]:
        """Return from which byte to go on, and what shows that the server's file is still the same."""
        try:
            validator = json.loads(self.state.read_text())["validator"]
        except (OSError, ValueError, KeyError):
            return 0, ""
        return (self._part_bytes(), validator) if validator else (0, "")

    def _part_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _full_disk(self, total_bytes: int | None) -> ValueError:
        done_bytes, free_bytes = self._part_bytes(), shutil.disk_usage(self.part.parent).free
        needed = "more space is" if total_bytes is None else f"another {total_bytes - done_bytes} bytes are"
        return ValueError(
            f"{self.part.parent}: the disk is full: {needed} needed for {self.address.url}, {free_bytes} are free; "
            "make room or move the workspace, then run again: the transfer goes on where it stopped"
        )


def _checked_url(url: str) -> str:
    """Return the address with characters that HTTP does not carry (spaces, non-ASCII) written as %XX."""
    try:
        parts = urllib.parse.urlsplit(url)
        opens = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        opens = False
    if not opens:
        raise AddressError("only http(s) addresses and local paths can be opened")
    return urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _file_name(url: str) -> str:
    """Return a name that ends like the address's last part, so that its suffix tells, and differs for each address."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).replace("\\", "/").rsplit("/", 1)[-1]
    plain = "".join(character if character.isalnum() or character in "._-" else "_" for character in name)[-100:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{plain or 'file'}"


def _validator(headers: Any) -> str:
    """Return the strong ETag, else the date of change, else nothing (RFC 9110, 13.1.5)."""
    etag = str(headers.get("ETag") or "")
    return etag if etag and not etag.startswith("W/") else str(headers.get("Last-Modified") or "")


def _total_bytes(headers: Any) -> int | None:
    """Return the size of the whole file, from Content-Range (`bytes 5-9/10`, `bytes */10`) or Content-Length."""
    size = str(headers.get("Content-Range") or "").rpartition("/")[2] or str(headers.get("Content-Length") or "")
    return int(size) if size.isdecimal() else None


def _starts_at(headers: Any, offset_bytes: int) -> bool:
    return str(headers.get("Content-Range") or "").removeprefix("bytes ").startswith(f"{offset_bytes}-")
