"""Processes that decode videos, kept for the next one: starting ffmpeg for every short video costs more than decoding it.

One process a video at a time, in-process FFmpeg (PyAV) inside; what was measured against what: docs/performance.md.
"""

from __future__ import annotations

import atexit
import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.video import decode_worker
from pipeline_lib.video.decode_worker import END, ERROR, HEADER
from pipeline_lib.video.ffmpeg import VideoError, check_file, read_tail

SILENCE_SECONDS = 300
"""Longest that decoding may take between two answers."""

Shape = tuple[int, ...]


class DecoderDiedError(VideoError):
    """The process that decoded a video died; the video may be sound."""


class DecoderProcess:
    """One process, which decodes a video after the other."""

    def __init__(self) -> None:
        """Start the process in a group of its own: Ctrl-C in the terminal must not make a good video look broken."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # A socket, unlike a pipe, fills an array in one call, without the interpreter.
        self._answers, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", decode_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=theirs.fileno(),
                stderr=self._log,
                bufsize=0,
                process_group=0,
            )
        assert self._process.stdin is not None
        self._requests = self._process.stdin
        self._answers.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SILENCE_SECONDS, 0))

    def frames(self, path: Path, empty: Callable[[Shape], np.ndarray], max_side: int | None) -> Iterator[np.ndarray]:
        """Yield a video's frames in arrays of several, made by `empty`. To be exhausted before the next video.

        Raises:
            VideoError: the video cannot be decoded, or the process died.
        """
        with suppress(BrokenPipeError):  # of a process that is dead, which reading will tell
            self._requests.write(json.dumps([str(path.absolute()), max_side]).encode() + b"\n")
        while (header := HEADER.unpack(self._read(np.empty(HEADER.size, np.uint8)).tobytes()))[0] != END:
            kind, count, height, width = header
            if kind == ERROR:
                raise VideoError(self._read(np.empty(count, np.uint8)).tobytes().decode())
            yield self._read(empty((count, height, width, 3)))

    def _read(self, wanted: np.ndarray) -> np.ndarray:
        """Fill an array with what the process sends."""
        rest = wanted.reshape(-1).data
        while rest:
            try:
                received = self._answers.recv_into(rest, flags=socket.MSG_WAITALL)
            except BlockingIOError:
                raise VideoError(f"decoding was silent for {SILENCE_SECONDS} seconds") from None
            if received == 0:
                raise self._death()
            rest = rest[received:]
        return wanted

    def _death(self) -> DecoderDiedError:
        """Return what the end of the process means."""
        status, stderr = self._process.wait(), read_tail(self._log)
        if status == -signal.SIGKILL:
            return DecoderDiedError("its decoder was killed; if nobody did that, the machine ran out of memory", stderr)
        last_line = stderr.splitlines()[-1] if stderr else "no message"
        return DecoderDiedError(f"its decoder ended with exit status {status}: {last_line}", stderr)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._requests, self._answers, self._log):
            file.close()


_idle: list[DecoderProcess] = []
_lock = threading.Lock()


def empty_array(shape: Shape) -> np.ndarray:
    """Return a uint8 array of any content."""
    return np.empty(shape, np.uint8)


def read_arrays(
    path: Path, *, empty: Callable[[Shape], np.ndarray] = empty_array, max_side: int | None = None
) -> Iterator[np.ndarray]:
    """Yield a video's frames in arrays of several (uint8 RGB, N x H x W x 3), decoded in a process of its own.

    Args:
        path: the video.
        empty: makes the arrays; where they are large and many, the memory of old ones had better be used again.
        max_side: a width or height above it is scaled down to it, in the decoding process; the aspect is not kept.

    Raises:
        VideoError: the video is missing or cannot be decoded, or the process that decoded it died.
    """
    check_file(path)
    with _decoder() as process:
        yield from process.frames(path, empty, max_side)


@contextmanager
def _decoder() -> Iterator[DecoderProcess]:
    """Lend an idle process, or a new one; up to one a core is kept for the next video, unless the block failed."""
    with _lock:
        process = _idle.pop() if _idle else None
    process = process or DecoderProcess()
    is_kept = False
    try:
        yield process
        with _lock:
            is_kept = len(_idle) < num_cores()
            if is_kept:
                _idle.append(process)
    finally:
        if not is_kept:
            process.close()


@atexit.register
def close_idle_decoders() -> None:
    """End the processes that wait for videos."""
    with _lock:
        while _idle:
            _idle.pop().close()
