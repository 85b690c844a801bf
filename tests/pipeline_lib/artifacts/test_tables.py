from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd

from pipeline_lib.artifacts.tables import CollectionVideo, read_videos, video_paths
from pipeline_lib.subsample.shards import COLUMNS


def write_shard(directory: Path, rows: list[tuple[str, int, str | None]]) -> Path:
    table = pd.DataFrame(rows, columns=["video", "num_frames", "reason"]).reindex(columns=list(COLUMNS))
    directory.mkdir()
    table.fillna({"width": 320, "height": 240}).astype(COLUMNS).to_parquet(directory / "videos.parquet", index=False)
    return directory


def test_shards_are_read_as_pandas_reads_them(tmp_path: Path):
    one = write_shard(tmp_path / "one", [("a/1.avi", 40, None), ("a/é.avi", 0, "no video stream")])
    two = write_shard(tmp_path / "two", [("b/#1.avi", 61, None)])
    expected = pd.concat([pd.read_parquet(shard / "videos.parquet") for shard in (two, one)], ignore_index=True)
    pd.testing.assert_frame_equal(read_videos([two, one]), expected)
    pd.testing.assert_frame_equal(read_videos([two, one], ["video", "reason"]), expected[["video", "reason"]])


def test_shards_of_older_versions_are_read_with_newer_ones(tmp_path: Path):
    """An older table may have a column of nothing, or whole numbers as fractions, where a newer one has its type."""
    old = tmp_path / "old"
    old.mkdir()
    table = pd.DataFrame({"video": ["a/1.avi"], "num_frames": [40.0], "reason": pd.Series([None], dtype="object")})
    table.to_parquet(old / "videos.parquet", index=False)
    new = write_shard(tmp_path / "new", [("a/2.avi", 0, "no video stream")])
    videos = read_videos([old, new], ["video", "num_frames", "reason"])
    assert videos["num_frames"].tolist() == [40, 0]
    assert videos["reason"].isna().tolist() == [True, False]


def test_paths_of_videos_leave_out_quarantined_ones(tmp_path: Path):
    one = write_shard(tmp_path / "one", [("a/1.avi", 40, None), ("a/2.avi", 0, "no video stream")])
    two = write_shard(tmp_path / "two", [("b/1.avi", 61, None)])
    expected = {"a/1.avi": one / "videos/a/1.avi.mp4", "b/1.avi": two / "videos/b/1.avi.mp4"}
    assert video_paths([one, two]) == expected


def test_a_video_of_the_collection_can_be_sent_to_a_worker():
    video = CollectionVideo("a/1.avi", "a", "0" * 64)
    assert pickle.loads(pickle.dumps(video)) == video
