from __future__ import annotations

import pandas as pd
import pytest

from pipeline_lib.chunk import cut_clips
from pipeline_lib.chunk.clips import count_rests
from pipeline_lib.params import ChunkParams


def videos(*num_frames: int) -> pd.DataFrame:
    names = [f"a/{number}.avi" for number in range(len(num_frames))]
    return pd.DataFrame({"video": names, "class_name": "a", "num_frames": pd.Series(num_frames, dtype="int64")})


def cut(table: pd.DataFrame, **params: object) -> list[tuple[str, int, int]]:
    clips = cut_clips(table, ChunkParams(frames=30, **params))
    return list(zip(clips["clip"], clips["first_frame"], clips["valid_frames"], strict=True))


def test_whole_clips_follow_each_other():
    assert cut(videos(60, 30)) == [("a/0.avi#00000", 0, 30), ("a/0.avi#00030", 30, 30), ("a/1.avi#00000", 0, 30)]


@pytest.mark.parametrize(("tail", "expected"), [("pad", [30, 30, 14]), ("drop", [30, 30])])
def test_the_tail_is_padded_or_dropped(tail: str, expected: list[int]):
    assert [valid for _, _, valid in cut(videos(74), tail=tail)] == expected


@pytest.mark.parametrize(("short", "expected"), [("pad", [29, 1]), ("drop", [])])
@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_short_videos_are_padded_or_dropped_whatever_the_tail(short: str, tail: str, expected: list[int]):
    assert [valid for _, _, valid in cut(videos(29, 1), short=short, tail=tail)] == expected


def test_a_video_without_frames_gives_no_clip():
    assert cut(videos(0, 30)) == [("a/1.avi#00000", 0, 30)]
    assert cut(videos()) == []


def test_the_table_keeps_its_columns_and_ignores_the_index():
    table = videos(31, 45).set_index(pd.Index([7, 7]))
    clips = cut_clips(table, ChunkParams())
    assert list(clips.columns) == ["clip", "video", "class_name", "first_frame", "valid_frames"]
    assert list(clips["video"]) == ["a/0.avi", "a/0.avi", "a/1.avi", "a/1.avi"]
    assert clips["valid_frames"].sum() == 31 + 45
    assert clips["clip"].is_unique


@pytest.mark.parametrize(
    ("short", "tail", "expected"),
    [
        ("pad", "pad", (2, 0, 1, 0, 0)),
        ("drop", "pad", (0, 2, 1, 0, 29 + 5)),
        ("pad", "drop", (2, 0, 0, 1, 14)),
        ("drop", "drop", (0, 2, 0, 1, 29 + 5 + 14)),
    ],
)
def test_padded_and_dropped_are_counted(short: str, tail: str, expected: tuple[int, ...]):
    table, params = videos(74, 60, 29, 5), ChunkParams(short=short, tail=tail)
    counts = count_rests(table, params)
    assert tuple(counts.values()) == expected
    assert table["num_frames"].sum() == cut_clips(table, params)["valid_frames"].sum() + counts["frames_dropped"]
