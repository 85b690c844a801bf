"""Average what overlapping windows say about each frame.

Shape suffixes: N frames of a window.
"""

from __future__ import annotations

import numpy as np


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
