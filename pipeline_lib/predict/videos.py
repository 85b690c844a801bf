"""Videos to predict: files, folders and addresses."""

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
"""Few retries, because a user is waiting."""

MAX_BYTES, MAX_SECONDS = 200_000_000, 600.0
"""Maximum size and duration of a video sent to `har app` or the served model."""
MAX_DOWNLOAD_BYTES = 4_000_000_000
"""Maximum size of a downloaded video."""


@dataclass(frozen=True)
class RequestedVideo:
    """A local or remote video to predict."""

    name: str
    """Path or http(s) address."""

    @property
    def is_remote(self) -> bool:
        """Whether the video must be downloaded."""
        return self.name.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The name without secrets."""
        return redact(self.name)

    @property
    def stem(self) -> str:
        """The file name without suffix, with characters that are valid on every file system."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.name).path) if self.is_remote else self.name
        return re.sub(r"[^\w.-]+", "_", Path(path).stem).strip("_")[:80] or "video"

    def fetch(self, folder: Path, progress: Progress | None = None) -> Path:
        """Return the path of the file, after downloading it to `folder` if it is remote.

        Raises:
            VideoError: the download failed.
        """
        if not self.is_remote:
            return Path(self.name)
        try:
            return Transfer(Address(self.name, kind="a video"), folder, RETRY_POLICY, _limited(progress)).run()
        except PermanentError as error:
            raise VideoError(str(error)) from None


def _limited(progress: Progress | None) -> Progress:
    """Return a progress callback that also stops downloads whose received or declared size is too large."""

    def advance(done_bytes: int, total_bytes: int | None) -> None:
        if max(done_bytes, total_bytes or 0) > MAX_DOWNLOAD_BYTES:
            raise VideoError(
                f"larger than the limit of {MAX_DOWNLOAD_BYTES // 1_000_000} MB for downloads; download it and give the file"
            )
        if progress:
            progress(done_bytes, total_bytes)

    return advance


def find_videos(arguments: Iterable[str]) -> list[RequestedVideo]:
    """Return the videos for files, folders (with all videos at any depth), and http, https or file addresses.

    Raises:
        UserError: a file or folder does not exist, or a folder has no videos.
    """
    return [RequestedVideo(name) for argument in arguments for name in _expand(argument)]


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
