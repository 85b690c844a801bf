"""The videos that somebody asks about: files, folders, addresses."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.addresses import Address, redact
from pipeline_lib.errors import UserError
from pipeline_lib.fetch.collection import VIDEO_SUFFIXES
from pipeline_lib.fetch.transfer import PermanentError, Progress, RetryPolicy, Transfer
from pipeline_lib.video.ffmpeg import VideoError

RETRY_POLICY = RetryPolicy(retries=2, timeout_seconds=30.0)
"""Somebody waits for the answer."""

MAX_BYTES, MAX_SECONDS = 200_000_000, 600.0
"""Most of a video that others send: what `har app` and the served model take."""
MAX_DOWNLOAD_BYTES = 4_000_000_000
"""Most of a video at an address."""


@dataclass(frozen=True)
class AskedVideo:
    """A video that was asked about: where it lies, or its http(s) address."""

    name: str
    """As it was asked for; a file of a folder by its path."""

    @property
    def is_remote(self) -> bool:
        """Whether it must be downloaded first."""
        return self.name.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """Its name without what is secret in an address."""
        return redact(self.name)

    @property
    def stem(self) -> str:
        """Its file name without suffix, of characters that every file system takes."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.name).path) if self.is_remote else self.name
        return re.sub(r"[^\w.-]+", "_", Path(path).stem).strip("_")[:80] or "video"

    def fetch(self, folder: Path, progress: Progress | None = None) -> Path:
        """Return the file, downloaded into `folder` if it is remote.

        Raises:
            VideoError: the address does not give it.
        """
        if not self.is_remote:
            return Path(self.name)
        try:
            return Transfer(Address(self.name, kind="a video"), folder, RETRY_POLICY, _limited(progress)).run()
        except PermanentError as error:
            raise VideoError(str(error)) from None


def _limited(progress: Progress | None) -> Progress:
    """Return the callback with a limit: it ends a transfer that is, or says that it will be, too large."""

    def advance(done_bytes: int, total_bytes: int | None) -> None:
        if max(done_bytes, total_bytes or 0) > MAX_DOWNLOAD_BYTES:
            raise VideoError(f"larger than the {MAX_DOWNLOAD_BYTES // 1_000_000} MB that are downloaded; give it as a file")
        if progress:
            progress(done_bytes, total_bytes)

    return advance


def find_videos(arguments: Iterable[str]) -> list[AskedVideo]:
    """Return the videos that files, folders (all videos inside, at any depth) and http, https or file addresses name.

    Raises:
        UserError: something is not there, or a folder holds no video.
    """
    return [AskedVideo(name) for argument in arguments for name in _expand(argument)]


def _expand(argument: str) -> Iterator[str]:
    scheme, separator, _ = argument.partition("://")
    if separator and scheme in ("http", "https"):
        yield argument
        return
    if separator and scheme != "file":
        raise UserError(f"{redact(argument)}: only http, https and file addresses can be opened")
    path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(argument).path) if separator else argument).expanduser()
    if not path.exists():
        raise UserError(f"{argument}: no such file or folder")
    if not path.is_dir():
        yield str(path)
        return
    found = sorted(str(file) for file in path.rglob("*") if _is_video(file, path))
    if not found:
        raise UserError(f"{argument}: no video in this folder ({', '.join(sorted(VIDEO_SUFFIXES))})")
    yield from found


def _is_video(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(root).parts)
    return file.suffix.lower() in VIDEO_SUFFIXES and not hidden and file.is_file()
