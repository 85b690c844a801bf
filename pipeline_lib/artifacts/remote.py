"""A workspace's artifacts in an object store.

    artifacts/<stage>/<key>/<sha256>        one object a file
    artifacts/<stage>/<key>/manifest.json   written last, and only if absent: the first publisher wins
    drafts/<name>.json                      files that a worker on another node uploaded, until the driver writes the manifest
    partial/<stage>/<key>/<file>            unfinished work that another node can resume
    runs/<id>.json, leases/<id>.json        what runs used, and who uses the workspace now

Requests are retried for `RETRY_SECONDS`. Errors that remain are one line (`UserError`).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore import exceptions
from obstore.store import from_url

from pipeline_lib.artifacts.digests import Digest, stamp_of
from pipeline_lib.artifacts.manifest import MANIFEST, FileRecord, Manifest
from pipeline_lib.errors import UserError

SCHEMES = ("s3://", "gs://", "az://", "file:///")
RETRY_SECONDS = 120
MAX_RETRIES = 1000
"""The time ends the retries, not their number."""
DOWNLOADS = 3
"""Attempts to download a file whose stream breaks off or whose digest is wrong."""
CONNECTIONS = 8
"""Files of an artifact that are transferred at once."""
PART_BYTES = 8 * 2**20
PARTS = 4
"""Parts of a large file that are uploaded at once."""
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS, and the bucket's policy",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY and the container's policy",
    "file": "the folder's permissions",
}
"""What to check if access is denied, by scheme."""
METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal")
"""Where obstore asks for credentials if the environment has none; only a cloud's own machines get an answer."""
_DENIED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_ANSWER_DENIED = re.compile("status code: 40[13]")
"""In the errors of list requests, which obstore does not classify."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were transferred."""


class DamagedError(UserError):
    """A file of an artifact in the object store is gone or has other content than its manifest says."""


class Object(NamedTuple):
    """An object of the store."""

    path: str
    size_bytes: int
    modified: datetime


def is_remote(address: str) -> bool:
    """Return whether a workspace's address is in an object store."""
    return address.startswith(SCHEMES) and bool(address.partition("://")[2].strip("/"))


class Remote:
    """The object store of a workspace; thread-safe. Credentials come from the environment, as AWS_ACCESS_KEY_ID and others."""

    def __init__(self, address: str, retry_seconds: float = RETRY_SECONDS) -> None:
        """Open the object store; nothing is requested yet.

        Raises:
            UserError: the address or the configuration is not valid.
        """
        self.address = address.rstrip("/")
        if not is_remote(address):
            raise UserError(f"workspace: {address}: give a folder, or an address such as s3://bucket/prefix")
        options = _options(self.address, retry_seconds)
        try:
            self._store = from_url(self.address, **options)
        except (exceptions.BaseError, ValueError, OSError) as error:
            raise UserError(f"workspace: {self.address}: {_first_line(error)}; check {self._credentials}") from None

    # Objects

    def get(self, path: str) -> bytes | None:
        """Return an object, or None if there is none."""
        with self._explained(), suppress(FileNotFoundError):
            return bytes(obstore.get(self._store, path).bytes())
        return None

    def put(self, path: str, content: bytes) -> None:
        """Write an object, also over an older one."""
        with self._explained(), self._written():
            obstore.put(self._store, path, content)

    def put_file(self, path: str, file: Path) -> None:
        """Write a file as an object, a large one in parts."""
        with file.open("rb") as content, self._explained(), self._written():
            obstore.put(self._store, path, content, chunk_size=PART_BYTES, max_concurrency=PARTS)

    def create(self, path: str, content: bytes) -> bool:
        """Write an object unless it exists; return whether it was written."""
        with self._explained(), self._written(), suppress(exceptions.AlreadyExistsError):
            obstore.put(self._store, path, content, mode="create")
            return True
        return False

    def objects(self, prefix: str) -> Iterator[Object]:
        """Yield the objects under a prefix, which is a folder's."""
        with self._explained():
            for batch in obstore.list(self._store, prefix, chunk_size=1000):
                yield from (Object(row["path"], row["size"], row["last_modified"]) for row in batch)

    def modified(self, path: str) -> datetime | None:
        """Return when an object was written, by the store's clock; None if there is none."""
        with self._explained(), suppress(FileNotFoundError):
            return obstore.head(self._store, path)["last_modified"]
        return None

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, several at once; those that are gone already are no matter."""

        def delete(path: str) -> None:
            with self._explained(), suppress(FileNotFoundError):
                obstore.delete(self._store, path)

        _map_in_threads(delete, list(paths))

    # Artifacts

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """Return the manifest of a published artifact; None if there is none or it cannot be read."""
        content = self.get(f"{folder_of(stage, key)}/{MANIFEST}")
        with suppress(ValueError):
            return None if content is None else Manifest.model_validate_json(content)
        return None

    def published(self, stage: str = "*") -> list[tuple[str, str]]:
        """Return the published artifacts of one or all stages as (stage, key), sorted."""
        paths = (one.path for one in self.objects("artifacts/" if stage == "*" else f"artifacts/{stage}/"))
        folders = (path.split("/")[1:3] for path in paths if path.endswith(f"/{MANIFEST}"))
        return sorted((stage, key) for stage, key in folders)

    def upload(self, stage: str, key: str, folder: Path, files: Sequence[FileRecord], on_bytes: OnBytes | None = None) -> None:
        """Upload an artifact's files, but for those that are there already."""
        prefix = folder_of(stage, key)
        there = {one.path: one.size_bytes for one in self.objects(f"{prefix}/")}

        def upload(file: FileRecord) -> None:
            if there.get(f"{prefix}/{file.sha256}") != file.size_bytes:
                self.put_file(f"{prefix}/{file.sha256}", folder / file.path)
            if on_bytes:
                on_bytes(file.size_bytes)

        _map_in_threads(upload, list({file.sha256: file for file in files}.values()))

    def publish(self, manifest: Manifest, *, replace: bool = False) -> Manifest:
        """Write the manifest of an artifact whose files are uploaded; return it, or that of who was first.

        Args:
            manifest: the artifact's.
            replace: whether to replace another one.
        """
        path = f"{folder_of(manifest.stage, manifest.key)}/{MANIFEST}"
        content = manifest.model_dump_json(indent=2).encode()
        if replace:
            self.put(path, content)
            return manifest
        while not self.create(path, content):
            if first := self.manifest(manifest.stage, manifest.key):
                return first
            self.delete([path])  # unreadable, or withdrawn a moment ago
        return manifest

    def download(self, stage: str, key: str, file: FileRecord, target: Path) -> Digest:
        """Download a file of an artifact, and return its stamp and digest.

        Raises:
            DamagedError: the file is gone, or its content is not what the manifest says.
        """
        path = f"{folder_of(stage, key)}/{file.sha256}"
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.download")
        try:
            for attempt in range(DOWNLOADS):
                with self._explained(is_last := attempt == DOWNLOADS - 1):
                    if self._stream(path, draft) == file.sha256:
                        stamp = stamp_of(draft.stat())
                        draft.replace(target)
                        return Digest(stamp, file.sha256)
                    if is_last:
                        break
            raise DamagedError(f"{self.address}/{path}: {file.path} does not hold what was written")
        except FileNotFoundError:
            raise DamagedError(f"{self.address}/{path}: {file.path} is gone") from None
        finally:
            draft.unlink(missing_ok=True)

    def _stream(self, path: str, target: Path) -> str:
        """Write an object to a file and return its SHA-256; an empty text if the stream broke off."""
        sha256 = hashlib.sha256()
        with target.open("wb") as file:
            for chunk in obstore.get(self._store, path).stream(min_chunk_size=PART_BYTES):
                file.write(chunk)
                sha256.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        return sha256.hexdigest()

    def withdraw(self, stage: str, key: str) -> None:
        """Delete an artifact's manifest, so that the next run makes it again."""
        self.delete([f"{folder_of(stage, key)}/{MANIFEST}"])

    def remove(self, stage: str, key: str) -> None:
        """Delete an artifact, its manifest first."""
        self.withdraw(stage, key)
        self.delete([one.path for one in self.objects(f"{folder_of(stage, key)}/")])

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Raise an error if what is written to does not exist."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(f"workspace: {self.address}: no such bucket; create it first ({_first_line(error)})") from None

    @contextmanager
    def _explained(self, is_last: bool = True) -> Iterator[None]:
        """Raise the store's errors as one line; ignore them in attempts that are not the last."""
        try:
            yield
        except (FileNotFoundError, UserError):
            raise
        except (exceptions.BaseError, ConnectionError, TimeoutError) as error:  # not a full disk of this machine
            if is_last or isinstance(error, _DENIED):
                raise UserError(self._explain(error)) from None

    @property
    def _credentials(self) -> str:
        return CREDENTIALS[self.address.partition("://")[0]]

    def _explain(self, error: Exception) -> str:
        reason = _first_line(error)
        if any(host in reason for host in METADATA_HOSTS):
            fault = f"no credentials were found; check {self._credentials}"
        elif isinstance(error, _DENIED) or _ANSWER_DENIED.search(reason):
            fault = f"access is denied; check {self._credentials}"
        elif "status code: 404" in reason:  # to a list request: one for an object is a FileNotFoundError
            fault = "no such bucket; create it first"
        else:
            fault = "the object store does not answer; finished work is kept in the cache, run again when it is back"
        return f"workspace: {self.address}: {fault} ({reason})"


def folder_of(stage: str, key: str) -> str:
    """Return the path of an artifact's folder in the store."""
    return f"artifacts/{stage}/{key}"


def _map_in_threads(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="transfer") as pool:
        for _ in pool.map(function, items):
            pass


def _options(address: str, retry_seconds: float) -> dict[str, Any]:
    if address.startswith("file://"):
        return {"mkdir": True}
    retries = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=retry_seconds),
        "backoff": {"max_backoff": timedelta(seconds=5)},
    }
    options: dict[str, Any] = {"retry_config": retries, "client_options": {"timeout": "300s", "connect_timeout": "5s"}}
    if address.startswith("s3://"):
        options["checksum_algorithm"] = "sha256"
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if address.startswith("s3://") else ("AZURE_STORAGE_ENDPOINT",)
    name, endpoint = next(((name, os.environ[name]) for name in names if os.environ.get(name)), ("", ""))
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError(f"{name}: {endpoint}: give an address such as https://objects.lab")
    options["client_options"]["allow_http"] = endpoint.startswith("http://")
    return options


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
