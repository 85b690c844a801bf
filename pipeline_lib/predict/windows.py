"""Windows of a clip's length over a stream of frames, and the mean of what windows that overlap say of a frame.

Shape suffixes: N frames of a part of the stream, T frames of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline_lib.video.ffmpeg import VideoError


class Window(NamedTuple):
    """Some frames in a row."""

    first_frame: int
    valid_frames: int
    frames_T: np.ndarray
    """(T, ...); the last valid frame is repeated to the end, as in feature files."""


def window_starts(num_frames: int, frames: int, overlap: float) -> list[int]:
    """Return the first frame of each window of `frames`; every frame is in one, and no window but the last ends late.

    Args:
        num_frames: frames of the video.
        frames: frames of a window.
        overlap: share of a window that the next one repeats, 0 up to but not including 1. 0 cuts clips as evaluation does.
    """
    stride = max(1, round(frames * (1 - overlap)))
    beyond_first = max(0, num_frames - frames)
    return [index * stride for index in range(1 + -(-beyond_first // stride))]


def cut_windows(stream: Iterable[np.ndarray], starts: Iterable[int], *, num_frames: int, frames: int) -> Iterator[Window]:
    """Yield the windows of a stream of arrays (N, ...), holding no more of it than a window and one array.

    Raises:
        VideoError: the stream ends before `num_frames`.
    """
    arrays = iter(stream)
    held = next(arrays, np.empty(0))
    held_first = 0
    for first in starts:
        end = min(first + frames, num_frames)
        while held_first + len(held) < end:
            array = next(arrays, None)
            if array is None:
                raise VideoError(f"decodes to {held_first + len(held)} frames, of {num_frames} counted before")
            held = np.concatenate([held[max(0, first - held_first) :], array])
            held_first = max(held_first, first)
        window = held[first - held_first : end - held_first]
        yield Window(first, end - first, pad_to(window, frames))


def pad_to(frames_N: np.ndarray, frames: int) -> np.ndarray:
    """Return (T, ...): the frames, and the last one again as often as needed."""
    missing = frames - len(frames_N)
    return np.concatenate([frames_N, np.repeat(frames_N[-1:], missing, axis=0)]) if missing else frames_N


class FrameMeans:
    """Adds up what windows say of each frame of a video, and takes the mean."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._sum: np.ndarray | None = None
        self._count = np.zeros(num_frames, np.int64)

    def add(self, first_frame: int, values_N: np.ndarray) -> None:
        """Add a window's values (N, ...) of the frames from `first_frame` on."""
        if self._sum is None:
            self._sum = np.zeros((self._num_frames, *values_N.shape[1:]))
        frames = slice(first_frame, first_frame + len(values_N))
        self._sum[frames] += values_N
        self._count[frames] += 1

    def mean(self) -> np.ndarray:
        """Return the mean of each frame, float32."""
        assert self._sum is not None, "no window was added"
        assert self._count.all(), "a frame that no window has seen"
        self._sum /= self._count.reshape(-1, *[1] * (self._sum.ndim - 1))
        return self._sum.astype(np.float32)
