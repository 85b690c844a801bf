"""Run ffmpeg with a timeout and turn its failures into one-line errors.

ffmpeg-python only compiles graphs to arguments. Its own `run` has no timeout and blocks when stderr fills its pipe.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ffmpeg
import imageio_ffmpeg

from pipeline_lib.errors import UserError

STDERR_TAIL_BYTES = 4000
"""Bytes kept from the end of ffmpeg's errors, where the cause is."""

LOG_BYTES = 1 << 20
"""Bytes to read from the beginning of ffmpeg's log, and as many from its end."""

MAX_PIXELS = 8192 * 4320
"""Maximum size of a frame, because a small file can declare frames of gigabytes."""

REFUSED_PIXELS = "exceeds specified max pixel count"
"""ffmpeg's message for larger frames."""

TOO_LARGE = f"its pictures are larger than {MAX_PIXELS / 1e6:.0f} million pixels"

REASONS = (
    (REFUSED_PIXELS, TOO_LARGE),
    ("matches no streams", "no video stream"),
    ("moov atom not found", "cut off or damaged: its index (moov atom) is missing"),
    ("Decode error rate", "damaged: most of it cannot be decoded"),
    ("Nothing was written into output file", "no frame could be decoded"),
    ("Invalid data found when processing input", "not a video that ffmpeg can read"),
)
"""Messages of ffmpeg and the reason to report; the first match counts. Artifacts contain the reasons, so do not reword them."""

PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<")
"""First bytes of HLS, ffconcat and DASH playlists."""

NICENESS = 10

STOPPED_BY_USER = (signal.SIGINT, signal.SIGTERM)

_LEVEL = re.compile(r"^((?:\[[^][]*\] )*)\[(panic|fatal|error|warning|info)\] (.*)$")


class VideoError(UserError):
    """A video that cannot be decoded or encoded."""

    def __init__(self, reason: str, stderr: str = "") -> None:
        """Store the one-line reason and the end of ffmpeg's stderr."""
        super().__init__(reason)
        self.reason = reason
        self.stderr = stderr


@dataclass(frozen=True)
class Log:
    """ffmpeg's stderr, by level."""

    info: str
    """Input and output streams, frame counts, and warnings."""
    errors: str
    """The last `STDERR_TAIL_BYTES` of the errors."""


def ffmpeg_path() -> str:
    """Return the path of the ffmpeg program that imageio-ffmpeg provides."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


INPUT_OPTIONS: dict[str, Any] = {
    # A playlist that `check_file` does not recognise must not make ffmpeg open URLs.
    "protocol_whitelist": "file",
    "max_pixels": MAX_PIXELS,
    # Error concealment is not deterministic with several threads. Callers run several processes instead.
    "threads": 1,
}


def open_video(path: Path, **options: Any) -> Any:
    """Return a graph's input node for a local file; any file name is safe.

    Raises:
        VideoError: the file is missing, unreadable, empty or a playlist.
    """
    check_file(path)
    return ffmpeg.input(str(path.absolute()), **(INPUT_OPTIONS | options))


def check_file(path: Path) -> None:
    """Raise VideoError if the file is missing, unreadable, empty, or a playlist that makes ffmpeg open other files."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VideoError("not a file")  # opening a pipe would block
        with path.open("rb") as file:
            beginning = file.read(64)
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from None
    if not beginning:
        raise VideoError("the file is empty (0 bytes)")
    if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(PLAYLISTS):
        raise VideoError("a playlist, not a video")


def command(stream: Any, *, loglevel: str = "error") -> list[str]:
    """Compile a graph to the argument list of a non-interactive ffmpeg with single-threaded filters."""
    program, *arguments = ffmpeg.compile(stream, cmd=ffmpeg_path())
    quiet = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", loglevel]
    return [program, *quiet, "-filter_complex_threads", "1", *arguments]


def start(
    arguments: list[str],
    log: BinaryIO,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    bufsize: int = -1,
) -> subprocess.Popen[bytes]:
    """Start ffmpeg with its stderr redirected to the file `log`.

    It runs in its own process group, because Ctrl-C must not make a good video look damaged. It does not get its own session:
    Linux divides the cores among sessions first (autogroup), so priorities only count within one.
    """
    return subprocess.Popen(arguments, stdin=stdin, stdout=stdout, stderr=log, bufsize=bufsize, process_group=0)


def run(stream: Any, *, timeout_seconds: float) -> Log:
    """Run a graph to completion and return ffmpeg's log.

    Raises:
        VideoError: ffmpeg failed, was killed, or took longer than `timeout_seconds`.
        OSError: the disk is full.
        RuntimeError: ffmpeg was stopped by SIGINT or SIGTERM.
    """
    arguments = command(stream, loglevel="level+info")
    # Waiting for the pipe to close is faster than `Popen.wait` with a timeout, which polls.
    with tempfile.TemporaryFile() as file, start(arguments, file, stdout=subprocess.PIPE) as process:
        _lower_priority(process)
        try:
            process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            raise VideoError(f"ffmpeg took longer than {timeout_seconds:g} seconds", read_log(file).errors) from None
        finally:
            stop(process)
        log = read_log(file)
    check_status(process.returncode, log.errors)
    return log


def _lower_priority(process: subprocess.Popen[bytes]) -> None:
    """Give feature extraction precedence over subsampling, so that a GPU does not idle."""
    with suppress(OSError):  # the process has ended already
        os.setpriority(os.PRIO_PGRP, process.pid, NICENESS)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the process if it is still running, and reap it."""
    process.kill()
    process.wait()


def read_log(file: BinaryIO) -> Log:
    """Read ffmpeg's stderr file, written with `-loglevel level+info`."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read(LOG_BYTES)
    file.seek(max(LOG_BYTES, size_bytes - LOG_BYTES))
    info: list[str] = []
    errors: list[str] = []
    for line in clean_text(content + file.read()).splitlines():
        where, level, text = match.groups() if (match := _LEVEL.match(line)) else ("", "", line)
        (errors if level in ("panic", "fatal", "error") else info).append(where + text)
    return Log("\n".join(info), "\n".join(errors)[-STDERR_TAIL_BYTES:].strip())


def read_tail(log: BinaryIO) -> str:
    """Return the end of ffmpeg's stderr file."""
    size_bytes = log.seek(0, os.SEEK_END)
    log.seek(max(0, size_bytes - STDERR_TAIL_BYTES))
    return clean_text(log.read())


def clean_text(stderr: bytes) -> str:
    """Decode ffmpeg's output and remove memory addresses, which differ between runs."""
    return re.sub(r" @ 0x[0-9a-f]+", "", stderr.decode("utf-8", "replace")).strip()


def check_status(returncode: int, stderr: str) -> None:
    """Raise the error for a non-zero exit status (see `run`)."""
    if returncode == 0:
        return
    if os.strerror(errno.ENOSPC) in stderr:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: make room and run again")
    if -returncode in STOPPED_BY_USER or "received signal" in stderr:
        raise RuntimeError("ffmpeg was stopped from outside")
    if -returncode == signal.SIGKILL:
        raise VideoError("ffmpeg was killed, as when memory runs out", stderr)
    if returncode < 0:
        raise VideoError(f"ffmpeg crashed ({signal.Signals(-returncode).name})", stderr)
    raise VideoError(_reason(stderr), stderr)


def _reason(stderr: str) -> str:
    for text, reason in REASONS:
        if text in stderr:
            return reason
    last_line = stderr.splitlines()[-1] if stderr else "no message"
    return f"ffmpeg failed: {last_line}"
