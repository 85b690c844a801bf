"""Steps of a stream in time: a clip's step stands for the frames nearest to the frame in its middle.

Shape suffixes: S steps, T frames, B clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def steps_of_frames(step_frames: Sequence[int], num_frames: int) -> np.ndarray:
    """Return the step of every frame: the one whose middle frame is nearest, the earlier one if two are equally near.

    Args:
        step_frames: the frame in the middle of each step, ascending.
        num_frames: frames of the clip.

    Returns:
        steps_T: int64 indices of steps.
    """
    return nearest_steps(step_frames, range(num_frames))


def nearest_steps(step_frames: Sequence[int], frames: Sequence[int]) -> np.ndarray:
    """Return the step_T whose middle frame is nearest to each of some frames, the earlier one if two are equally near."""
    distance_TS = np.abs(np.asarray(frames)[:, None] - np.asarray(step_frames)[None])
    return distance_TS.argmin(axis=1)


def valid_steps(step_frames: Sequence[int], valid_frames: ArrayLike) -> np.ndarray:
    """Return how many steps have a middle frame that is not padding, at least 1.

    Args:
        step_frames: the frame in the middle of each step, ascending.
        valid_frames: the number of frames of each clip (or of one) that are not padding.

    Returns:
        valid_steps_B (or a single number), int64.
    """
    valid_BS = np.asarray(step_frames) < np.asarray(valid_frames)[..., None]
    return np.maximum(valid_BS.sum(axis=-1), 1)
