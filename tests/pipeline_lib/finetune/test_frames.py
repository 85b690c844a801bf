"""The frames of the finetune stage: the right ones, each video decoded once, drawn anew and reproducibly."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.errors import UserError
from pipeline_lib.finetune import frames as frames_module
from pipeline_lib.finetune.frames import FrameStore, load_frames
from pipeline_lib.finetune.source import Source
from pipeline_lib.video.decoders import RGB
from pipeline_lib.video.writing import VideoWriter

pytestmark = pytest.mark.usefixtures("single_thread")
CLASSES = ["run", "wave"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two videos whose frame n is grey of level 10 n (wave) or 10 n + 5 (run)."""
    folder = tmp_path_factory.mktemp("videos")
    for name, offset, num_frames in (("wave", 0, 20), ("run", 5, 6)):
        with VideoWriter(folder / f"{name}.mp4", width=48, height=32, fps=15) as writer:
            for number in range(num_frames):
                writer.write(np.full((32, 48, 3), 10 * number + offset, np.uint8))
    return folder


@pytest.fixture
def clips() -> pd.DataFrame:
    rows = [("wave", "wave", 8, 8), ("wave", "wave", 0, 8), ("run", "run", 0, 6), ("wave", "wave", 16, 3)]
    return pd.DataFrame(rows, columns=["video", "class_name", "first_frame", "valid_frames"])


def load(
    clips: pd.DataFrame, folder: Path, examples_per_video: int | None = None, offsets: tuple[int, ...] = (0,)
) -> FrameStore:
    source = Source(RGB, iter, 16, 3, offsets, 640)
    return load_frames(
        clips,
        CLASSES,
        lambda video: folder / f"{video}.mp4",
        source,
        scratch=folder,
        examples_per_video=examples_per_video,
    )


def levels(store: FrameStore) -> list[int]:
    return [round(level / 5) * 5 for level in store.images[:, 0, 8, 8].tolist()]


def examples(store: FrameStore) -> list[list[int]]:
    images_NTCHW = store.load(torch.arange(len(store.labels)))
    return (images_NTCHW[:, :, 0, 8, 8] / 5).round().mul(5).int().tolist()


def test_all_frames_of_the_clips_that_fit_are_kept_in_order(clips: pd.DataFrame, folder: Path) -> None:
    store = load(clips, folder)
    assert levels(store) == [10 * n + 5 for n in range(6)] + [10 * n for n in range(19)]
    assert store.labels.tolist() == [0] * 6 + [1] * 19
    assert store.videos.tolist() == [0] * 6 + [1] * 19
    assert store.images.shape == (25, 3, 16, 16)
    assert store.images.dtype == torch.uint8


def test_a_few_frames_of_each_video_not_clip_are_evenly_spaced(clips: pd.DataFrame, folder: Path) -> None:
    store = load(clips, folder, examples_per_video=2)
    assert levels(store) == [15, 45, 40, 140]
    assert store.videos.tolist() == [0, 0, 1, 1]


def test_images_that_memory_does_not_hold_are_kept_in_a_file_that_is_gone(
    clips: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, before = load(clips, folder), sorted(folder.iterdir())
    monkeypatch.setattr(frames_module, "MAX_MEMORY_BYTES", 1)
    in_file = load(clips, folder)
    assert sorted(folder.iterdir()) == before
    assert torch.equal(in_file.images, in_memory.images)
    assert in_file.images.stride() == in_memory.images.stride()


def test_full_disk_is_told(clips: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frames_module, "MAX_MEMORY_BYTES", 1)
    monkeypatch.setattr(os, "posix_fallocate", reserve, raising=False)
    with pytest.raises(UserError, match=r"^finetune: .*no room for 0\.0 GB of training images \(No space left on device\)"):
        load(clips, folder)


def test_a_video_of_ucf101_keeps_all_its_flows() -> None:
    num_frames = pd.Series([108] * 8200)  # the mean at 15 fps, and the videos of fold 1 that train
    stacks = Source(RGB, iter, 112, 2, tuple(range(5)), 640)
    assert frames_module._max_images(num_frames, stacks, None) >= 108


def test_size_is_bounded(clips: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "MAX_STORE_BYTES", 3 * 2 * 16 * 16 * 3)
    assert torch.bincount(load(clips, folder).videos).tolist() == [3, 3]


def test_every_run_of_consecutive_images_is_an_example_and_none_crosses_videos(clips: pd.DataFrame, folder: Path) -> None:
    store = load(clips, folder, offsets=(0, 1, 2))
    assert examples(store) == [
        *[[10 * (n + t) + 5 for t in range(3)] for n in range(4)],
        *[[10 * (n + t) for t in range(3)] for n in range(17)],
    ]
    assert store.videos.tolist() == [0] * 4 + [1] * 17


def test_few_examples_of_each_video_are_evenly_spaced(clips: pd.DataFrame, folder: Path) -> None:
    store = load(clips, folder, examples_per_video=2, offsets=(0, 1))
    assert len(store.images) == 8
    assert examples(store) == [[5, 15], [35, 45], [30, 40], [130, 140]]


def test_example_longer_than_its_video_repeats_the_last_image(clips: pd.DataFrame, folder: Path) -> None:
    store = load(clips, folder, offsets=(0, 4, 8))
    assert examples(store)[0] == [5, 45, 55]
    assert store.videos.tolist() == [0] + [1] * 11


def test_one_example_of_each_video_is_kept_whatever_its_size(
    clips: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "MAX_STORE_BYTES", 1)
    store = load(clips, folder, offsets=(0, 1, 2, 3))
    assert examples(store) == [[15, 25, 35, 45], [70, 80, 90, 100]]


@pytest.mark.parametrize(("span", "limit"), [(1, 7), (4, 13), (5, 9), (5, 49), (5, 5)])
def test_ranges_lie_within_the_video_and_apart(span: int, limit: int) -> None:
    for num_frames in range(limit + 1, 120):
        ranges = frames_module._evenly_spaced(num_frames, limit, span)
        numbers = [number for numbers in ranges for number in numbers]
        assert [len(numbers) for numbers in ranges] == [span] * (limit // span)
        assert numbers == sorted(set(numbers))
        assert numbers[0] >= 0
        assert numbers[-1] < num_frames


def test_video_shorter_than_its_clips_is_named(clips: pd.DataFrame, folder: Path) -> None:
    clips.loc[clips["video"] == "run", "valid_frames"] = 8
    with pytest.raises(ValueError, match="run: ends before frame 7"):
        load(clips, folder)


def test_draw_takes_up_to_so_many_of_every_video_anew_each_time() -> None:
    videos_N = torch.tensor([0] * 10 + [1] * 2 + [2] * 10)
    store = FrameStore(torch.zeros(22, 3, 1, 1), torch.arange(22)[:, None], torch.zeros(22), videos_N)
    generator = torch.Generator().manual_seed(0)
    first, second = store.draw(4, generator), store.draw(4, generator)
    for drawn in (first, second):
        assert torch.bincount(videos_N[drawn]).tolist() == [4, 2, 4]
        assert len(drawn.unique()) == 10
    assert set(first.tolist()) != set(second.tolist())
    assert torch.equal(store.draw(4, torch.Generator().manual_seed(0)), first)


def test_every_frame_is_drawn_about_equally_often() -> None:
    store = FrameStore(torch.zeros(10, 3, 1, 1), torch.arange(10)[:, None], torch.zeros(10), torch.zeros(10, dtype=torch.long))
    generator = torch.Generator().manual_seed(0)
    counts = sum(torch.bincount(store.draw(3, generator), minlength=10) for _ in range(400))
    assert counts.min() > 80
    assert counts.max() < 160
