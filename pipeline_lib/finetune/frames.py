"""Examples for tuning a backbone: videos are decoded once, and their images kept; each epoch draws random examples.

An example is one frame, a stack of consecutive flows, or the frames of a clip.

Shape suffixes: F images of all videos, N examples, T images of an example, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.errors import UserError
from pipeline_lib.finetune.source import Source
from pipeline_lib.streams.encoding import resize
from pipeline_lib.video.decoders import Wanted
from pipeline_lib.video.decoding import process_ahead

logger = logging.getLogger(__name__)

MAX_MEMORY_BYTES = 4 * 1024**3
"""Maximum memory for the images of one split; more are kept in a file, which the system caches in the memory that is free."""

MAX_STORE_BYTES = 32 * 1024**3
"""Maximum size of the images of one split, enough for the flows of UCF-101; of more, evenly spaced examples are kept."""


@dataclass(frozen=True)
class FrameStore:
    """Images of videos, and the examples in them with their labels and videos."""

    images: Tensor
    """images_FCHW, uint8: RGB frames or encoded flows."""
    rows: Tensor
    """rows_NT: which images an example consists of."""
    labels: Tensor
    """labels_N: class index of each example."""
    videos: Tensor
    """videos_N: index of each example's video, ascending."""

    def load(self, examples: Tensor) -> Tensor:
        """Return the images_NTCHW (uint8) of examples by their indices."""
        rows_NT = self.rows[examples]
        return self.images[rows_NT.flatten()].unflatten(0, rows_NT.shape)

    def draw(self, examples_per_video: int, generator: torch.Generator) -> Tensor:
        """Return the shuffled indices of up to `examples_per_video` random examples of every video."""
        order_N = torch.argsort(self.videos + torch.rand(len(self.videos), generator=generator, dtype=torch.float64))
        chosen = order_N[_rank_in_video(self.videos) < examples_per_video]
        return chosen[torch.randperm(len(chosen), generator=generator)]


def _rank_in_video(videos_N: Tensor) -> Tensor:
    """Number the examples of each video from 0."""
    _, sizes = torch.unique_consecutive(videos_N, return_counts=True)
    starts_N = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.arange(len(videos_N)) - starts_N


def load_frames(
    clips: pd.DataFrame,
    classes: Sequence[str],
    video_path: Callable[[str], Path],
    source: Source,
    *,
    scratch: Path,
    examples_per_video: int | None = None,
) -> FrameStore:
    """Decode the videos of `clips` on all cores and return their examples, evenly spaced if not all images can be kept.

    Args:
        clips: table with video, class_name, first_frame, valid_frames.
        classes: class names in the order of the labels.
        video_path: returns the path of a video by its id.
        source: what examples are made from.
        scratch: existing folder for images that exceed `MAX_MEMORY_BYTES`; the file has no name left when this returns.
        examples_per_video: number of examples per video to keep the images of; default: as many as fit into
            `MAX_STORE_BYTES`, and at least one.

    Raises:
        UserError: a video cannot be decoded or is shorter than its clips, or the disk is full.
    """
    clips = clips.assign(end=clips["first_frame"] + clips["valid_frames"])
    videos = clips.groupby("video").agg(class_name=("class_name", "first"), num_frames=("end", "max"))
    limit = _max_images(videos["num_frames"], source, examples_per_video)
    kept = {str(video): _evenly_spaced(num_frames, limit, source.span) for video, num_frames in videos["num_frames"].items()}
    images_FCHW = _decode(kept, video_path, source, scratch)
    rows = list(_rows(kept.values(), source))
    sizes = torch.tensor([len(rows_NT) for rows_NT in rows])
    labels = torch.tensor([classes.index(name) for name in videos["class_name"]])
    videos_N = torch.arange(len(sizes)).repeat_interleave(sizes)
    return FrameStore(images_FCHW, torch.cat(rows), labels.repeat_interleave(sizes), videos_N)


def _max_images(num_frames: pd.Series[int], source: Source, examples_per_video: int | None) -> int:
    """Return how many images of a video to keep."""
    affordable = max(source.span, MAX_STORE_BYTES // (len(num_frames) * source.image_bytes))
    if examples_per_video is None and affordable < num_frames.max():
        logger.info("keeping %d frames of each video to stay within %d bytes", affordable, MAX_STORE_BYTES)
    return min(examples_per_video * source.span, affordable) if examples_per_video else affordable


def _evenly_spaced(num_frames: int, limit: int, span: int) -> list[range]:
    """Return the images of a video to keep: all, or evenly spaced ranges of `span` with up to `limit` images."""
    if num_frames <= limit:
        return [range(num_frames)]
    count = limit // span
    middles = [(2 * index + 1) * num_frames // (2 * count) for index in range(count)]
    return [range(middle - span // 2, middle - span // 2 + span) for middle in middles]


def _rows(kept: Iterable[Sequence[range]], source: Source) -> Iterator[Tensor]:
    """Yield the rows_NT of each video's examples; an example that is longer than its video repeats the last image."""
    offsets_T = torch.tensor(source.offsets)
    first_row = 0
    for ranges in kept:
        examples = []
        for numbers in ranges:
            starts_N = torch.arange(max(1, len(numbers) - source.span + 1))
            examples.append(first_row + (starts_N[:, None] + offsets_T).clamp(max=len(numbers) - 1))
            first_row += len(numbers)
        yield torch.cat(examples)


def _decode(kept: Mapping[str, Sequence[range]], video_path: Callable[[str], Path], source: Source, scratch: Path) -> Tensor:
    """Return the kept images of every video as images_FCHW (channels last in memory), in order."""
    total = sum(len(numbers) for ranges in kept.values() for numbers in ranges)
    images_FCHW = _empty(total * source.image_bytes, scratch).view(total, source.side, source.side, -1).permute(0, 3, 1, 2)

    def process(video: str, decoded: Iterator[tuple[Wanted, np.ndarray]]) -> Iterator[np.ndarray]:
        return _kept_images(video, kept[video], source.images(array for _, array in decoded))

    videos = [(video, video_path(video)) for video in kept]
    start = 0
    for _, images in process_ahead(videos, process, wanted=[source.wanted], workers=num_cores(), max_side=source.decoded_side):
        for images_NHWC in images:
            images_FCHW[start : start + len(images_NHWC)] = resize([torch.from_numpy(images_NHWC)], source.side)
            start += len(images_NHWC)
    assert start == total, "some images were not decoded"
    return images_FCHW


def _empty(size: int, scratch: Path) -> Tensor:
    """Return uint8 numbers to be set, in memory or in a file without a name that goes with the tensor."""
    if size <= MAX_MEMORY_BYTES:
        return torch.empty(size, dtype=torch.uint8)
    path = scratch / "images"
    try:
        with path.open("wb") as file:
            # Reserved, because a write to a mapped file on a full disk would end the process.
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    except OSError as error:
        raise UserError(
            f"finetune: {scratch}: no room for {size / 1e9:.1f} GB of training images ({error.strerror}); free some of the disk"
        ) from None
    finally:
        path.unlink(missing_ok=True)


def _kept_images(video: str, ranges: Sequence[range], arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the images in ascending ranges of numbers from arrays with all images of a video."""
    is_kept = np.zeros(ranges[-1].stop, bool)
    for numbers in ranges:
        is_kept[numbers.start : numbers.stop] = True
    number = 0
    for images_NHWC in arrays:
        chosen_NHWC = images_NHWC[: max(0, len(is_kept) - number)][is_kept[number : number + len(images_NHWC)]]
        number += len(images_NHWC)
        if len(chosen_NHWC):
            yield chosen_NHWC
    if number < len(is_kept):
        raise UserError(f"{video}: ends before frame {ranges[-1][-1]} of its clips; run with `--refresh subsample`")
