from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.chunk import cut_clips
from pipeline_lib.params import ChunkParams
from pipeline_lib.streams.windows import cut_windows, window_starts
from pipeline_lib.video.ffmpeg import VideoError


@pytest.mark.parametrize("num_frames", [1, 5, 6, 7, 12, 29, 30, 31, 100])
def test_without_overlap_windows_are_the_clips_of_evaluation(num_frames: int):
    videos = pd.DataFrame({"video": ["v"], "class_name": ["c"], "num_frames": [num_frames]})
    clips = cut_clips(videos, ChunkParams(frames=6))
    assert window_starts(num_frames, 6, 0.0) == clips["first_frame"].tolist()


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("num_frames", [1, 7, 12, 31])
def test_overlapping_windows_cover_every_frame_and_only_the_last_ends_late(num_frames: int, overlap: float):
    starts = window_starts(num_frames, 6, overlap)
    covered = {frame for first in starts for frame in range(first, first + 6)}
    assert covered >= set(range(num_frames))
    assert all(first + 6 <= num_frames for first in starts[:-1])
    assert len(set(np.diff(starts))) <= 1


@pytest.mark.parametrize(("frames", "overlap"), [(6, 0.0), (6, 0.5), (6, 0.8), (40, 0.0), (1, 0.0)])
@pytest.mark.parametrize("sizes", [[25], [1] * 25, [10, 15], [3, 0, 22]])
def test_windows_hold_the_streams_frames_and_the_last_one_again(frames: int, overlap: float, sizes: list[int]):
    stream = np.arange(50).reshape(25, 2)
    arrays = np.split(stream, np.cumsum(sizes)[:-1])
    starts = window_starts(25, frames, overlap)
    windows = list(cut_windows(arrays, starts, num_frames=25, frames=frames))
    assert [window.first_frame for window in windows] == starts
    for window in windows:
        indices = np.minimum(np.arange(window.first_frame, window.first_frame + frames), 24)
        np.testing.assert_array_equal(window.values, stream[indices])
        assert window.valid_frames == min(frames, 25 - window.first_frame)


def test_no_more_of_the_stream_is_read_than_the_window_needs():
    read = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(100):
            read += 8
            yield np.zeros((8, 1))

    for window in cut_windows(stream(), window_starts(800, 30, 0.5), num_frames=800, frames=30):
        assert read < window.first_frame + window.valid_frames + 8


def test_a_stream_that_ends_early_is_an_error():
    with pytest.raises(VideoError, match="decoded 10 frames, but counted 12 before"):
        list(cut_windows([np.zeros((10, 1))], [0, 6], num_frames=12, frames=6))
