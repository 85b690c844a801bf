"""Decode videos in reusable processes, because starting ffmpeg for a short video costs more than decoding it.

Each process decodes one video at a time with PyAV (see docs/performance.md for alternatives). It also makes other images from
the frames, such as those of optical flow, because threads that do would wait for the interpreter's lock most of the time.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.video import decode_worker
from pipeline_lib.video.decode_worker import END, ERROR, HEADER
from pipeline_lib.video.ffmpeg import VideoError, check_file, read_tail

TIMEOUT_SECONDS = 300
"""Maximum time between two messages of a decoder."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Derived:
    """Images that the decoder process makes from the frames of a video, one for each frame."""

    function: Callable[..., Iterator[np.ndarray]]
    """Takes an iterator of all frames (uint8 RGB, H x W x 3) and the arguments; yields uint8 images, H x W x C. It belongs to a
    module of this package that imports little, because the process imports it, too."""
    arguments: tuple[Any, ...] = ()
    """JSON types."""


Wanted = Derived | None
"""What to get of a video: its frames (`RGB`), or what is made from them."""

RGB: Wanted = None


class DecoderDiedError(VideoError):
    """The decoder process died. The video may be fine."""


class DecoderProcess:
    """A process that decodes videos one after another."""

    def __init__(self) -> None:
        """Start the process in its own process group, because Ctrl-C must not make a good video look damaged."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # Unlike a pipe, a socket fills an array in a single call.
        self._responses, worker_end = socket.socketpair()
        with worker_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", decode_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=worker_end.fileno(),
                stderr=self._log,
                bufsize=0,
                process_group=0,
            )
        assert self._process.stdin is not None
        self._requests = self._process.stdin
        self._responses.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT_SECONDS, 0))

    def images(
        self, path: Path, wanted: Sequence[Wanted], empty: Callable[[Shape], np.ndarray], max_side: int | None
    ) -> Iterator[tuple[Wanted, np.ndarray]]:
        """Yield arrays of several images of a video, allocated by `empty`. Exhaust it before the next video.

        Raises:
            VideoError: the video cannot be decoded, or the process died.
        """
        request = [str(path.absolute()), max_side, [_to_json(each) for each in wanted]]
        with suppress(BrokenPipeError):  # the process is dead; reading raises its error
            self._requests.write(json.dumps(request).encode() + b"\n")
        while (header := HEADER.unpack(self._read(np.empty(HEADER.size, np.uint8)).tobytes()))[0] != END:
            kind, index, *shape = header
            if kind == ERROR:
                raise VideoError(self._read(np.empty(index, np.uint8)).tobytes().decode())
            yield wanted[index], self._read(empty(tuple(shape)))

    def _read(self, wanted: np.ndarray) -> np.ndarray:
        """Fill an array with bytes from the process."""
        rest = wanted.reshape(-1).data
        while rest:
            try:
                received = self._responses.recv_into(rest, flags=socket.MSG_WAITALL)
            except BlockingIOError:
                raise VideoError(f"the decoder did not respond for {TIMEOUT_SECONDS} seconds") from None
            if received == 0:
                raise self._exit_error()
            rest = rest[received:]
        return wanted

    def _exit_error(self) -> DecoderDiedError:
        """Return the error for the exit status of the process."""
        status, stderr = self._process.wait(), read_tail(self._log)
        if status == -signal.SIGKILL:
            return DecoderDiedError("the decoder was killed, probably because the machine ran out of memory", stderr)
        last_line = stderr.splitlines()[-1] if stderr else "no message"
        return DecoderDiedError(f"the decoder exited with status {status}: {last_line}", stderr)

    def close(self) -> None:
        """Kill the process and release its resources."""
        self._process.kill()
        self._process.wait()
        for file in (self._requests, self._responses, self._log):
            file.close()


def _to_json(wanted: Wanted) -> list[Any] | None:
    return [wanted.function.__module__, wanted.function.__name__, wanted.arguments] if wanted else None


_idle: list[DecoderProcess] = []
_lock = threading.Lock()


def empty_array(shape: Shape) -> np.ndarray:
    """Return an uninitialised uint8 array."""
    return np.empty(shape, np.uint8)


def read_arrays(
    path: Path, *, empty: Callable[[Shape], np.ndarray] = empty_array, max_side: int | None = None
) -> Iterator[np.ndarray]:
    """Yield arrays of several frames of a video (uint8 RGB, N x H x W x 3), decoded in another process; see `read_images`."""
    with closing(read_images(path, [RGB], empty=empty, max_side=max_side)) as images:  # type: ignore[type-var]  # a generator
        for _, frames_NHWC in images:
            yield frames_NHWC


def read_images(
    path: Path,
    wanted: Sequence[Wanted],
    *,
    empty: Callable[[Shape], np.ndarray] = empty_array,
    max_side: int | None = None,
) -> Iterator[tuple[Wanted, np.ndarray]]:
    """Yield arrays of several images of a video (uint8, N x H x W x C), each with what it is. The video is decoded once.

    Args:
        path: the video.
        wanted: the frames, images made from them, or both; each once. They are sent in step.
        empty: allocates the output arrays; pass a pooling allocator for large frames.
        max_side: a frame's width or height above it is scaled down to it by the decoder, without keeping the aspect ratio.

    Raises:
        VideoError: the video is missing or cannot be decoded, or the decoder process died.
    """
    check_file(path)
    with _decoder() as process:
        yield from process.images(path, wanted, empty, max_side)


@contextmanager
def _decoder() -> Iterator[DecoderProcess]:
    """Yield an idle or a new process. If the block succeeds, the process is kept for reuse, up to one per core."""
    with _lock:
        process = _idle.pop() if _idle else None
    process = process or DecoderProcess()
    is_reusable = False
    try:
        yield process
        with _lock:
            is_reusable = len(_idle) < num_cores()
            if is_reusable:
                _idle.append(process)
    finally:
        if not is_reusable:
            process.close()


@atexit.register
def close_idle_decoders() -> None:
    """Close all idle decoder processes."""
    with _lock:
        while _idle:
            _idle.pop().close()
