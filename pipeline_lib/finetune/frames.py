"""Frames for tuning a backbone: videos are decoded once, resized and kept in memory; each epoch draws random frames.

Shape suffixes: N frames, C colour channels (3), H W pixels.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline_lib.errors import UserError
from pipeline_lib.streams.encoding import decoded_side, resize
from pipeline_lib.video.decoding import read_ahead

logger = logging.getLogger(__name__)

MAX_STORE_BYTES = 4 * 1024**3
"""Maximum memory for the frames of one split; if they need more, fewer evenly spaced frames of each video are kept."""

RESIZE_FRAMES = 64
"""Decoded frames to resize per batch; bounds memory."""


@dataclass(frozen=True)
class FrameStore:
    """Frames with their labels and videos."""

    frames: Tensor
    """frames_NCHW, uint8 RGB."""
    labels: Tensor
    """labels_N: class index of each frame."""
    videos: Tensor
    """videos_N: index of each frame's video, ascending."""

    def draw(self, frames_per_video: int, generator: torch.Generator) -> Tensor:
        """Return the shuffled indices of up to `frames_per_video` random frames of every video."""
        order_N = torch.argsort(self.videos + torch.rand(len(self.videos), generator=generator, dtype=torch.float64))
        chosen = order_N[_rank_in_video(self.videos) < frames_per_video]
        return chosen[torch.randperm(len(chosen), generator=generator)]


def _rank_in_video(videos_N: Tensor) -> Tensor:
    """Number the frames of each video from 0."""
    _, sizes = torch.unique_consecutive(videos_N, return_counts=True)
    starts_N = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.arange(len(videos_N)) - starts_N


def load_frames(
    clips: pd.DataFrame,
    classes: Sequence[str],
    video_path: Callable[[str], Path],
    *,
    image_size: int,
    frames_per_video: int | None = None,
) -> FrameStore:
    """Decode the videos of `clips` and return evenly spaced frames, resized to image_size x image_size.

    Args:
        clips: table with video, class_name, first_frame, valid_frames.
        classes: class names in the order of the labels.
        video_path: returns the path of a video by its id.
        image_size: side in pixels.
        frames_per_video: maximum number of frames per video; default: as many as fit into `MAX_STORE_BYTES`.

    Raises:
        UserError: a video cannot be decoded or is shorter than its clips.
    """
    clips = clips.assign(end=clips["first_frame"] + clips["valid_frames"])
    videos = clips.groupby("video").agg(class_name=("class_name", "first"), num_frames=("end", "max"))
    affordable = max(1, MAX_STORE_BYTES // (len(videos) * image_size**2 * 3))
    if frames_per_video is None and affordable < videos["num_frames"].max():
        logger.info("keeping %d frames of each video to stay within %d bytes", affordable, MAX_STORE_BYTES)
    limit = min(frames_per_video or affordable, affordable)
    wanted = {str(video): _evenly_spaced(num_frames, limit) for video, num_frames in videos["num_frames"].items()}
    frames_NCHW = _decode(wanted, video_path, image_size)
    sizes = torch.tensor([len(numbers) for numbers in wanted.values()])
    labels = torch.tensor([classes.index(name) for name in videos["class_name"]])
    return FrameStore(frames_NCHW, labels.repeat_interleave(sizes), torch.arange(len(sizes)).repeat_interleave(sizes))


def _evenly_spaced(num_frames: int, limit: int) -> list[int]:
    """Return up to `limit` evenly spaced numbers from 0 to num_frames - 1."""
    count = min(limit, num_frames)
    return [(2 * index + 1) * num_frames // (2 * count) for index in range(count)]


def _decode(wanted: Mapping[str, Sequence[int]], video_path: Callable[[str], Path], image_size: int) -> Tensor:
    """Return the wanted frames of every video as frames_NCHW (channels last in memory), in order."""
    frames_NCHW = torch.empty(sum(map(len, wanted.values())), 3, image_size, image_size, dtype=torch.uint8)
    frames_NCHW = frames_NCHW.contiguous(memory_format=torch.channels_last)
    start = 0
    for batch in _batches(_wanted_frames(wanted, video_path, decoded_side(image_size))):
        frames_NCHW[start : start + len(batch)] = resize(_stack_by_size(batch), image_size)
        start += len(batch)
    assert start == len(frames_NCHW), "some wanted frames were not decoded"
    return frames_NCHW


def _wanted_frames(
    wanted: Mapping[str, Sequence[int]], video_path: Callable[[str], Path], max_side: int
) -> Iterator[np.ndarray]:
    for video, arrays in read_ahead(((video, video_path(video)) for video in wanted), max_side=max_side):
        missing = set(wanted[video])
        for number, frame in enumerate(itertools.chain.from_iterable(arrays)):
            if number in missing:
                missing.discard(number)
                yield frame
        if missing:
            raise UserError(f"{video}: ends before frame {max(missing)} of its clips; run with `--refresh subsample`")


def _stack_by_size(frames: Iterable[np.ndarray]) -> list[Tensor]:
    """Stack consecutive frames of the same size."""
    return [torch.from_numpy(np.stack(list(same_size))) for _, same_size in itertools.groupby(frames, key=np.shape)]


def _batches(frames: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    iterator = iter(frames)
    while batch := list(itertools.islice(iterator, RESIZE_FRAMES)):
        yield batch
