from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.artifacts import layout
from pipeline_lib.artifacts.tables import CollectionVideo
from pipeline_lib.params import SubsampleParams
from pipeline_lib.subsample import check_quarantine, subsample_shard
from pipeline_lib.video.ffmpeg import ffmpeg_path
from pipeline_lib.video.reading import count_frames
from pipeline_lib.video.writing import VideoWriter

PARAMS = SubsampleParams()

UNTAMED_NAMES = [
    "-_FREE_HUGS_-_Abrazos_Gratis_hug_f_cm_np2_ba_med_5.mp4",
    "#437_How_To_Ride_A_Bike_ride_bike_f_cm_np1_le_med_0.mp4",
    "A(Timo_3)_[x]!&+;~@_catch_u_nm_np1_fr_med_2.mp4",
    "with space  and %03d.mp4",
    "quote'\"$HOME`.mp4",
    "日本é.mp4",
    "a:b,c=d\\e.mp4",
]


def write_video(path: Path, num_frames: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, width=32, height=16, fps=30) as video:
        for number in range(num_frames):
            video.write(np.full((16, 32, 3), 20 * number % 256, np.uint8))


def source(video: str) -> CollectionVideo:
    return CollectionVideo(video, video.split("/")[0], "0" * 64)


def subsample_below(root: Path, videos: list[CollectionVideo], *args, **kwargs) -> dict[str, int]:
    return subsample_shard({video.video: root / video.video for video in videos}, videos, *args, **kwargs)


def test_untamed_names_are_only_names(tmp_path: Path):
    root, shard = tmp_path / "- root #1", tmp_path / "sh&ard"
    for name in UNTAMED_NAMES:
        write_video(root / "class a" / name)
    counts = subsample_below(root, [source(f"class a/{name}") for name in UNTAMED_NAMES], shard, PARAMS)
    assert counts == {"videos": len(UNTAMED_NAMES), "frames": 5 * len(UNTAMED_NAMES), "quarantined": 0}
    assert {path.name for path in (shard / "videos/class a").iterdir()} == {f"{name}.mp4" for name in UNTAMED_NAMES}


def test_a_broken_video_is_set_aside_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root, shard = tmp_path / "root", tmp_path / "shard"
    write_video(root / "a/good.avi")
    (root / "a/broken.avi").write_bytes(b"RIFF" * 500)
    (root / "a/empty.avi").touch()
    ticks: list[int] = []
    videos = [source(f"a/{name}.avi") for name in ("broken", "empty", "good")]
    counts = subsample_below(root, videos, shard, PARAMS, on_video=lambda video: ticks.append(1))
    assert counts == {"videos": 1, "frames": 5, "quarantined": 2}
    assert len(ticks) == 3
    table = pd.read_parquet(shard / "videos.parquet").set_index("video")
    assert list(table.columns) == [
        "class_name",
        "source_sha256",
        "source_fps",
        "num_frames",
        "width",
        "height",
        "reason",
        "stderr",
    ]
    good, broken, empty = table.loc["a/good.avi"], table.loc["a/broken.avi"], table.loc["a/empty.avi"]
    assert (good["num_frames"], good["width"], good["height"], good["source_fps"]) == (5, 32, 16, 30.0)
    assert pd.isna(good["reason"])
    assert pd.isna(good["stderr"])
    assert count_frames(layout.subsampled_path(shard, "a/good.avi")) == 5
    assert broken["reason"] == "not a video that ffmpeg can read"
    assert "a/broken.avi" in broken["stderr"]
    assert str(tmp_path) not in broken["stderr"]
    assert (broken["num_frames"], empty["reason"]) == (0, "the file is empty (0 bytes)")
    assert [path.name for path in (shard / "videos/a").iterdir()] == ["good.avi.mp4"]
    assert "quarantined a/broken.avi: not a video that ffmpeg can read" in caplog.text


def test_a_video_over_which_ffmpeg_is_killed_is_set_aside_and_the_others_go_on(tmp_path: Path, monkeypatch):
    for name in ("bad", "good"):
        write_video(tmp_path / f"root/a/{name}.avi")
    killer = tmp_path / "ffmpeg"
    killer.write_text(f'#!/bin/sh\ncase "$*" in */bad.avi*) kill -KILL $$;; *) exec "{ffmpeg_path()}" "$@";; esac\n')
    killer.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(killer))
    counts = subsample_below(tmp_path / "root", [source("a/bad.avi"), source("a/good.avi")], tmp_path / "shard", PARAMS)
    assert counts == {"videos": 1, "frames": 5, "quarantined": 1}
    reasons = pd.read_parquet(tmp_path / "shard/videos.parquet").set_index("video")["reason"]
    assert reasons["a/bad.avi"] == "ffmpeg was killed, as when memory runs out"
    assert pd.isna(reasons["a/good.avi"])


def test_the_same_videos_elsewhere_give_the_same_bytes(tmp_path: Path):
    tables = []
    for place in ("here", "there"):
        root, shard = tmp_path / place / "root", tmp_path / place / "shard"
        write_video(root / "a/good.avi")
        (root / "a/broken.avi").write_bytes(b"RIFF" * 500)
        subsample_below(root, [source("a/broken.avi"), source("a/good.avi")], shard, PARAMS)
        tables.append({path.relative_to(shard): path.read_bytes() for path in shard.rglob("*") if path.is_file()})
    assert len(tables[0]) == 2
    assert tables[0] == tables[1]


def test_a_shard_of_nothing_but_broken_videos_is_still_described(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/empty.avi").touch()
    subsample_below(tmp_path, [source("a/empty.avi")], tmp_path / "shard", PARAMS)
    table = pd.read_parquet(tmp_path / "shard/videos.parquet")
    assert table["reason"].notna().all()
    assert table["num_frames"].dtype == np.int64


def shard_table(num_videos: int, num_lost: int) -> pd.DataFrame:
    reasons = ["no video stream"] * num_lost + [None] * (num_videos - num_lost)
    return pd.DataFrame({"video": [f"a/{number}.avi" for number in range(num_videos)], "reason": reasons}, dtype="str")


def test_a_share_of_lost_videos_is_tolerated():
    check_quarantine([shard_table(50, 1), shard_table(50, 0)], 0.01)
    check_quarantine([shard_table(2, 1)], 0.5)


@pytest.mark.parametrize(("tables", "allowed"), [([shard_table(99, 1)], 0.01), ([shard_table(3, 3)], 1.0)])
def test_too_many_lost_videos_fail_the_stage(tables: list[pd.DataFrame], allowed: float):
    with pytest.raises(ValueError, match=rf"subsample.max_quarantined = {allowed:g} allows: a/0.avi \(no video stream\)"):
        check_quarantine(tables, allowed)


def test_the_failure_names_counts_examples_and_the_key():
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        check_quarantine([shard_table(10, 4), shard_table(10, 1)], 0.1)
    assert str(caught.value) == (
        "5 of 20 videos cannot be decoded, more than subsample.max_quarantined = 0.1 allows: a/0.avi (no video stream), "
        "a/1.avi (no video stream), a/2.avi (no video stream), and 2 more; replace or remove them, or allow more"
    )
