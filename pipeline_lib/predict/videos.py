"""The videos that somebody asks about: files, folders, addresses."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.fetch.collection import VIDEO_SUFFIXES
from pipeline_lib.fetch.transfer import Address, PermanentError, Progress, RetryPolicy, Transfer
from pipeline_lib.video.ffmpeg import VideoError

RETRY_POLICY = RetryPolicy(retries=2, timeout_seconds=30.0)
"""Somebody waits for the answer."""


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
            return Transfer(Address(self.name, kind="a video"), folder, RETRY_POLICY, progress).run()
        except PermanentError as error:
            raise VideoError(str(error)) from None


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
        raise UserError(f"{argument}: only http, https and file addresses can be opened")
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
