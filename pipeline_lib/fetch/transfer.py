"""Download a file over HTTP with resumption, retries with exponential backoff, and a check of the complete file."""

from __future__ import annotations

import base64
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

from pipeline_lib.addresses import Address, redact
from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far and the total, which is None if the server does not say."""

BLOCK_BYTES = 256 * 1024
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that are worth a retry."""
TEXTS = {b"<": "a web page", b"{": "a JSON message", b"[": "a JSON message", b"version https://git-lfs.": "a Git LFS pointer"}
"""First bytes of texts that servers send instead of a file."""
TEXT_TYPES = {"text/html": "a web page", "application/xhtml+xml": "a web page", "application/json": "a JSON message"}


@dataclass(frozen=True)
class RetryPolicy:
    """Timeout, number of retries and backoff of a download."""

    retries: int = 5
    """Maximum number of consecutive retries without progress."""
    timeout_seconds: float = 60.0
    """Maximum time to wait for data."""
    backoff_seconds: float = 1.0
    """Wait before the first retry; doubles with each further one."""

    def wait_seconds(self, retry: int) -> float:
        """Return the wait before a retry (0, 1, ...), with random jitter."""
        return min(self.backoff_seconds * 2.0 ** min(retry, 16), 60.0) * random.uniform(0.5, 1.5)


class PermanentError(Exception):
    """The file is not available at the address, and retrying is useless; the message is only the reason."""


class TransientError(Exception):
    """The transfer was interrupted and may be retried."""


def check_file(path: Path, address: Address) -> None:
    """Raise `PermanentError` if the file is a text or its size or SHA-256 is not the address's."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        if kind := text_kind(file.read(512)):
            raise PermanentError(f"{'answered with' if address.is_remote else 'it is'} {kind}, not {address.kind}")
        if address.size_bytes not in (None, size_bytes):
            raise _wrong_size(size_bytes, address)
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest() if address.sha256 else None
    if found != address.sha256:
        raise PermanentError(f"the file is damaged or another one: its SHA-256 is {found}, expected {address.sha256}")


def text_kind(first_bytes: bytes) -> str | None:
    """Return the kind of text that starts with these bytes, if it is one that servers send instead of a file, else None."""
    if b"\0" in first_bytes:
        return None
    text = first_bytes.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for start, kind in TEXTS.items() if text.startswith(start)), None)


def _wrong_size(size_bytes: int, address: Address) -> PermanentError:
    return PermanentError(f"the file is another one: it has {size_bytes} bytes, expected {address.size_bytes}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http(s) addresses only, and send the login to no other host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        parts = urllib.parse.urlsplit(newurl)
        if parts.scheme not in ("http", "https"):
            raise urllib.error.HTTPError(newurl, code, msg, headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, _without_login(parts))
        login = req.get_header("Authorization")
        downgraded = req.type == "https" and parts.scheme == "http"
        if request and login and parts.netloc == req.host and not downgraded:
            request.add_unredirected_header("Authorization", login)
        return request


class Transfer:
    """The download of one remote file to a folder."""

    def __init__(self, address: Address, directory: Path, policy: RetryPolicy, progress: Progress | None) -> None:
        self.address = address
        self.shown = redact(address.url)
        self.policy = policy
        self.progress = progress or (lambda done_bytes, total_bytes: None)
        self.path = directory / _file_name(address.url)
        directory.mkdir(parents=True, exist_ok=True)
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.state = self.path.with_name(f"{self.path.name}.part.json")

    def run(self) -> Path:
        """Download and check the file, unless it exists already, and return its path."""
        if not self.path.exists():
            self._transfer()
            self._publish()
        return self.path

    def _transfer(self) -> None:
        """Try until the file is complete; a try that makes progress resets the count of retries."""
        retry, furthest_bytes = 0, self._part_bytes()
        while True:
            try:
                return self._try()
            except TransientError as error:
                if self._part_bytes() > furthest_bytes:
                    retry, furthest_bytes = 0, self._part_bytes()
                if retry >= self.policy.retries:
                    raise PermanentError(f"{error}; gave up after {retry + 1} tries") from None
                wait_seconds = self.policy.wait_seconds(retry)
                logger.info("%s: %s; trying again in %.1f s", self.shown, error, wait_seconds)
                time.sleep(wait_seconds)
                retry += 1

    def _publish(self) -> None:
        try:
            check_file(self.part, self.address)
        except PermanentError:
            self._discard_partial()
            raise
        self.part.replace(self.path)
        self.state.unlink(missing_ok=True)

    def _try(self) -> None:
        offset_bytes, validator = self._resume_point()
        request = _request(self.address.url)
        if offset_bytes:
            request.add_header("Range", f"bytes={offset_bytes}-")
            request.add_header("If-Range", validator)
        opener = urllib.request.build_opener(_Redirects)
        try:
            with opener.open(request, timeout=self.policy.timeout_seconds) as response:
                self._receive(response, offset_bytes, validator)
        except urllib.error.HTTPError as error:
            error.close()
            self._check_status(error, offset_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise self._classify(error) from None

    def _classify(self, error: Exception) -> Exception:
        """Return the error for a failed connection; only an invalid certificate is permanent."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return PermanentError(f"its certificate cannot be verified: {reason.verify_message}")
        if isinstance(reason, TimeoutError):
            return TransientError(f"no data for {self.policy.timeout_seconds:g} s")
        return TransientError(f"the connection failed: {reason or type(reason).__name__}")

    def _check_status(self, error: urllib.error.HTTPError, offset_bytes: int) -> None:
        """Raise the error for an HTTP status; return if it means that the partial file is complete already."""
        if error.code == 416 and offset_bytes:
            if _total_bytes(error.headers) == offset_bytes:
                return
            self._discard_partial()
            raise TransientError("the file changed; starting over")
        if 300 <= error.code < 400:
            raise PermanentError(f"HTTP {error.code}: too many redirects, or a redirect to an address that is not http(s)")
        message = f"HTTP {error.code} {error.reason}"
        raise TransientError(message) if error.code in TRANSIENT_STATUSES else PermanentError(message)

    def _receive(self, response: Any, offset_bytes: int, validator: str) -> None:
        resumed = response.status == 206
        if resumed and (not _starts_at(response.headers, offset_bytes) or _validator(response.headers) != validator):
            self._discard_partial()
            raise TransientError("the file changed; starting over")
        if kind := TEXT_TYPES.get(response.headers.get_content_type()):
            raise PermanentError(f"answered with {kind}, not {self.address.kind}")
        done_bytes = offset_bytes if resumed else 0
        total_bytes = _total_bytes(response.headers)
        if total_bytes is not None and self.address.size_bytes not in (None, total_bytes):
            raise _wrong_size(total_bytes, self.address)
        if (total_bytes or 0) - done_bytes > shutil.disk_usage(self.part.parent).free:
            raise self._disk_full_error(total_bytes)
        if not resumed:
            self._discard_partial()
            self.state.write_text(json.dumps({"validator": _validator(response.headers)}))
        self._append(response, done_bytes, total_bytes)

    def _append(self, response: Any, done_bytes: int, total_bytes: int | None) -> None:
        """Append the response to the partial file."""
        with self.part.open("ab", buffering=0) as file:
            while (total_bytes is None or done_bytes < total_bytes) and (block := response.read1(BLOCK_BYTES)):
                self._write(file, block, total_bytes)
                done_bytes += len(block)
                self.progress(done_bytes, total_bytes)
        if total_bytes is not None and done_bytes < total_bytes:
            raise TransientError(f"the connection was closed after {done_bytes} of {total_bytes} bytes")

    def _write(self, file: Any, block: bytes, total_bytes: int | None) -> None:
        """Write a whole block; a single write to an unbuffered file may be partial."""
        try:
            while block:
                block = block[file.write(block) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._disk_full_error(total_bytes) from None
            raise UserError(f"{self.part}: cannot be written: {error.strerror}") from None

    def _resume_point(self) -> tuple[int, str]:
        """Return the offset to resume from in bytes, and the validator for the server's file (0 and "" to start over)."""
        try:
            validator = json.loads(self.state.read_text())["validator"]
        except (OSError, ValueError, KeyError):
            return 0, ""
        return (self._part_bytes(), validator) if validator else (0, "")

    def _part_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard_partial(self) -> None:
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _disk_full_error(self, total_bytes: int | None) -> UserError:
        done_bytes, free_bytes = self._part_bytes(), shutil.disk_usage(self.part.parent).free
        needed = "more space is" if total_bytes is None else f"another {total_bytes - done_bytes} bytes are"
        return UserError(
            f"{self.part.parent}: the disk is full: {needed} needed for {self.shown}, {free_bytes} are free; "
            "free space or move the workspace, then run again to resume the download"
        )


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        opens = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        opens = False
    if not opens:
        raise PermanentError("only http(s) addresses and local paths can be opened")
    return parts


def _request(url: str) -> urllib.request.Request:
    """Return the request for an address, with its login as a header (RFC 7617) and special characters quoted."""
    parts = _split(url)
    quoted = urllib.parse.quote(_without_login(parts), safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "har", "Accept-Encoding": "identity"})
    if parts.username is not None:
        login = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    return request


def _without_login(parts: urllib.parse.SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _file_name(url: str) -> str:
    """Return a file name that is unique to the address and keeps the end of its path, including the suffix."""
    name = urllib.parse.unquote(_split(url).path).replace("\\", "/").rsplit("/", 1)[-1]
    plain = "".join(character if character.isalnum() or character in "._-" else "_" for character in name)[-100:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{plain or 'file'}"


def _validator(headers: Any) -> str:
    """Return the strong ETag, else Last-Modified, else "" (RFC 9110, 13.1.5)."""
    etag = str(headers.get("ETag") or "")
    return etag if etag and not etag.startswith("W/") else str(headers.get("Last-Modified") or "")


def _total_bytes(headers: Any) -> int | None:
    """Return the size of the whole file, from Content-Range (`bytes 5-9/10`, `bytes */10`) or Content-Length."""
    size = str(headers.get("Content-Range") or "").rpartition("/")[2] or str(headers.get("Content-Length") or "")
    return int(size) if size.isdecimal() else None


def _starts_at(headers: Any, offset_bytes: int) -> bool:
    return str(headers.get("Content-Range") or "").removeprefix("bytes ").startswith(f"{offset_bytes}-")
