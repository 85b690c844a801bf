"""The frames a backbone is tuned on: each video decoded once, the frames kept small in memory, drawn anew every epoch.

Shape suffixes: N frames, C colour channels (3), H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline_lib.features.decoding import read_ahead
from pipeline_lib.features.encoding import resize

logger = logging.getLogger(__name__)

MAX_STORE_BYTES = 4 * 1024**3
"""Most memory for the frames of one part; beyond it, fewer frames of each clip are kept, evenly spaced."""

RESIZE_FRAMES = 64
"""Frames held at full size at once."""


@dataclass(frozen=True)
class FrameStore:
    """Frames of clips, and whose they are."""

    frames: Tensor
    """frames_NCHW, uint8 RGB."""
    labels: Tensor
    """labels_N: class index of each frame."""
    clips: Tensor
    """clips_N: index of the clip each frame belongs to, ascending."""

    def draw(self, frames_per_clip: int, generator: torch.Generator) -> Tensor:
        """Return indices of up to `frames_per_clip` random frames of every clip, shuffled."""
        order_N = torch.argsort(self.clips + torch.rand(len(self.clips), generator=generator, dtype=torch.float64))
        chosen = order_N[_rank_in_clip(self.clips) < frames_per_clip]
        return chosen[torch.randperm(len(chosen), generator=generator)]


def _rank_in_clip(clips_N: Tensor) -> Tensor:
    """Return 0, 1, 2, ... for the frames of each clip."""
    _, sizes = torch.unique_consecutive(clips_N, return_counts=True)
    starts_N = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.arange(len(clips_N)) - starts_N


def load_frames(
    clips: pd.DataFrame,
    classes: Sequence[str],
    video_path: Callable[[str], Path],
    *,
    image_size: int,
    frames_per_clip: int | None = None,
) -> FrameStore:
    """Decode the videos of `clips` and keep frames at image_size x image_size.

    Args:
        clips: table with video, class_name, first_frame, valid_frames.
        classes: class names, in the order of the labels.
        video_path: where the video of an id is.
        image_size: side in pixels.
        frames_per_clip: frames to keep of each clip, evenly spaced; default: as many as fit `MAX_STORE_BYTES`.

    Raises:
        ValueError: a video cannot be decoded or is shorter than its clips.
    """
    affordable = max(1, MAX_STORE_BYTES // (len(clips) * image_size**2 * 3))
    if frames_per_clip is None and affordable < clips["valid_frames"].max():
        logger.info("%d frames of each clip are kept, to stay within %d bytes", affordable, MAX_STORE_BYTES)
    clips = clips.sort_values(["video", "first_frame"])
    kept = [_evenly_spaced(clip, min(frames_per_clip or affordable, affordable)) for clip in clips.itertuples()]
    frames_NCHW = _decode(clips["video"].tolist(), kept, video_path, image_size)
    sizes = torch.tensor([len(numbers) for numbers in kept])
    labels = torch.tensor([classes.index(name) for name in clips["class_name"]])
    return FrameStore(frames_NCHW, labels.repeat_interleave(sizes), torch.arange(len(kept)).repeat_interleave(sizes))


def _evenly_spaced(clip: object, frames: int) -> list[int]:
    """Return the numbers, in their video, of up to `frames` of the clip's valid frames."""
    first, valid = clip.first_frame, clip.valid_frames  # type: ignore[attr-defined]
    count = min(frames, valid)
    return [first + (2 * index + 1) * valid // (2 * count) for index in range(count)]


def _decode(videos: Sequence[str], kept: Sequence[Sequence[int]], video_path: Callable[[str], Path], image_size: int) -> Tensor:
    """Return the kept frames of all clips, given the clips' videos (equal ones adjacent), in the order of the clips."""
    wanted: dict[str, list[int]] = {}
    for video, numbers in zip(videos, kept, strict=True):
        wanted.setdefault(video, []).extend(numbers)
    frames_NCHW = torch.empty(sum(map(len, wanted.values())), 3, image_size, image_size, dtype=torch.uint8)
    frames_NCHW = frames_NCHW.contiguous(memory_format=torch.channels_last)
    start = 0
    waiting: list[np.ndarray] = []

    def store() -> None:
        nonlocal start
        if waiting:
            frames_NCHW[start : start + len(waiting)] = resize(waiting, image_size, torch.device("cpu"))
            start += len(waiting)
            waiting.clear()

    for video, frames in read_ahead((video, video_path(video)) for video in wanted):
        missing = set(wanted[video])
        for number, frame in enumerate(frames):
            if number in missing:
                waiting.append(frame)
                missing.discard(number)
            if len(waiting) == RESIZE_FRAMES:
                store()
        if missing:
            raise ValueError(f"{video}: ends before frame {max(missing)} of its clips; run with `--refresh subsample`")
    store()
    return frames_NCHW
