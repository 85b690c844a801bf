"""Processes that decode videos, kept for the next one: starting ffmpeg for every short video costs more than decoding it.

One process a video at a time, in-process FFmpeg (PyAV) inside; what was measured against what: docs/performance.md.
"""

from __future__ import annotations

import atexit
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline_lib.video import decode_worker
from pipeline_lib.video.decode_worker import END, ERROR, HEADER
from pipeline_lib.video.ffmpeg import VideoError, check_file, read_tail
from pipeline_lib.workers.cores import num_cores

SILENCE_SECONDS = 300
"""Longest that decoding may take between two answers."""

Shape = tuple[int, ...]


class DecoderProcess:
    """One process, which decodes a video after the other."""

    def __init__(self) -> None:
        """Start the process; its session is its own: Ctrl-C in the terminal must not make a good video look broken."""
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
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._requests = self._process.stdin
        self._answers.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SILENCE_SECONDS, 0))

    def frames(self, path: Path, empty: Callable[[Shape], np.ndarray]) -> Iterator[np.ndarray]:
        """Yield a video's frames in arrays of several, made by `empty`. To be exhausted before the next video.

        Raises:
            VideoError: the video cannot be decoded.
            RuntimeError: the process died.
        """
        with suppress(BrokenPipeError):  # of a process that is dead, which reading will tell
            self._requests.write(json.dumps(str(path.absolute())).encode() + b"\n")
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
                raise RuntimeError(f"a decoding process ended (exit code {self._process.wait()}): {read_tail(self._log)}")
            rest = rest[received:]
        return wanted

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._requests, self._answers, self._log):
            file.close()


_idle: list[DecoderProcess] = []
_lock = threading.Lock()
_cores = threading.BoundedSemaphore(num_cores())


def empty_array(shape: Shape) -> np.ndarray:
    """Return a uint8 array of any content."""
    return np.empty(shape, np.uint8)


def read_arrays(path: Path, *, empty: Callable[[Shape], np.ndarray] = empty_array) -> Iterator[np.ndarray]:
    """Yield a video's frames in arrays of several (uint8 RGB, N x H x W x 3), decoded in another process.

    There is a process for each video that is read at once, up to one a core; they stay for the next videos.

    Args:
        path: the video.
        empty: makes the arrays; where they are large and many, the memory of old ones had better be used again.

    Raises:
        VideoError: the video is missing, or cannot be decoded.
        RuntimeError: the process that decoded it died.
    """
    check_file(path)
    with _cores:
        with _lock:
            process = _idle.pop() if _idle else None
        process = process or DecoderProcess()
        exhausted = False
        try:
            yield from process.frames(path, empty)
            exhausted = True
        finally:
            if exhausted:
                with _lock:
                    _idle.append(process)
            else:
                process.close()


@atexit.register
def close_idle_decoders() -> None:
    """End the processes that wait for videos."""
    with _lock:
        while _idle:
            _idle.pop().close()
