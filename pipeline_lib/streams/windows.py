"""Cut a video's frames, or what was made from each of them, into windows of a clip's length.

Shape suffix: N frames of an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline_lib.video.ffmpeg import VideoError


class Window(NamedTuple):
    """Consecutive frames, or the features of their steps."""

    first_frame: int
    valid_frames: int
    values: np.ndarray
    """(frames or steps, ...), padded by repeating the last valid frame, as in feature files."""


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


def cut_windows(
    frames_in_order: Iterable[np.ndarray], starts: Iterable[int], *, num_frames: int, frames: int
) -> Iterator[Window]:
    """Yield the windows of consecutive arrays (N, ...); keeps at most a window and one array in memory.

    Raises:
        VideoError: the arrays end before `num_frames`.
    """
    arrays = iter(frames_in_order)
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
    """Pad to `frames` frames by repeating the last frame."""
    missing = frames - len(frames_N)
    return np.concatenate([frames_N, np.repeat(frames_N[-1:], missing, axis=0)]) if missing else frames_N
