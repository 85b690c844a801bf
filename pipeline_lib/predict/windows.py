"""Cut a stream of frames into windows of a clip's length, and average the results of overlapping windows.

Shape suffixes: N frames of an array of the stream, T frames of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline_lib.video.ffmpeg import VideoError


class Window(NamedTuple):
    """Consecutive frames."""

    first_frame: int
    valid_frames: int
    frames_T: np.ndarray
    """(T, ...), padded by repeating the last valid frame, as in feature files."""


def window_starts(num_frames: int, frames: int, overlap: float) -> list[int]:
    """Return the first frame of each window. Windows cover all frames, and only the last one may exceed the video.

    Args:
        num_frames: frames of the video.
        frames: frames of a window.
        overlap: fraction of a window that the next one repeats, at least 0 and less than 1. Evaluation uses 0.
    """
    stride = max(1, round(frames * (1 - overlap)))
    beyond_first = max(0, num_frames - frames)
    return [index * stride for index in range(1 + -(-beyond_first // stride))]


def cut_windows(stream: Iterable[np.ndarray], starts: Iterable[int], *, num_frames: int, frames: int) -> Iterator[Window]:
    """Yield the windows of a stream of arrays (N, ...); keeps at most a window and one array in memory.

    Raises:
        VideoError: the stream ends before `num_frames`.
    """
    arrays = iter(stream)
    buffer = next(arrays, np.empty(0))
    buffer_first = 0
    for first in starts:
        end = min(first + frames, num_frames)
        while buffer_first + len(buffer) < end:
            array = next(arrays, None)
            if array is None:
                raise VideoError(f"decoded {buffer_first + len(buffer)} frames, but counted {num_frames} before")
            buffer = np.concatenate([buffer[max(0, first - buffer_first) :], array])
            buffer_first = max(buffer_first, first)
        window = buffer[first - buffer_first : end - buffer_first]
        yield Window(first, end - first, pad_to(window, frames))


def pad_to(frames_N: np.ndarray, frames: int) -> np.ndarray:
    """Pad to (T, ...) by repeating the last frame."""
    missing = frames - len(frames_N)
    return np.concatenate([frames_N, np.repeat(frames_N[-1:], missing, axis=0)]) if missing else frames_N


class FrameMeans:
    """Average the values of overlapping windows for each frame of a video."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._sum: np.ndarray | None = None
        self._count = np.zeros(num_frames, np.int64)

    def add(self, first_frame: int, values_N: np.ndarray) -> None:
        """Add the values (N, ...) of a window's frames, starting at `first_frame`."""
        if self._sum is None:
            self._sum = np.zeros((self._num_frames, *values_N.shape[1:]))
        frames = slice(first_frame, first_frame + len(values_N))
        self._sum[frames] += values_N
        self._count[frames] += 1

    def mean(self) -> np.ndarray:
        """Return the mean of each frame, float32."""
        assert self._sum is not None, "no window was added"
        assert self._count.all(), "a frame without a window"
        self._sum /= self._count.reshape(-1, *[1] * (self._sum.ndim - 1))
        return self._sum.astype(np.float32)
