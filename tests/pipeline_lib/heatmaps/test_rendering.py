"""The stage as a whole, on small videos it can decode."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline_lib.heatmaps import render_heatmaps, rendering
from pipeline_lib.heatmaps.rendering import Painter, fitting_plain
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.video.reading import probe, read_frames
from pipeline_lib.video.writing import VideoWriter

FPS = 15
SMALL = HeatmapsParams(side=160, gif_side=80, successes=2, failures=2)
CLIPS = (
    ("run/#1 (a) é.avi", "run", "run", 0.9),
    ("run/b.avi", "run", "sit", 0.7),
    ("sit/c.avi", "sit", "sit", 0.8),
)
NUM_FRAMES = 12


@pytest.fixture
def videos(tmp_path: Path) -> Callable[[str], Path]:
    """Grey videos that grow lighter by 10 levels a frame."""

    def path(video: str) -> Path:
        return tmp_path / "videos" / f"{video}.mp4"

    for video, *_ in CLIPS:
        path(video).parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path(video), width=64, height=48, fps=FPS) as writer:
            for number in range(NUM_FRAMES):
                writer.write(np.full((48, 64, 3), 40 + 10 * number, np.uint8))
    return path


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Three clips of 30 frames, of which 8 are valid and begin at frame 4; attention sits in the lower left cell."""
    directory = tmp_path / "evaluation"
    directory.mkdir()
    rows = [
        {
            "clip": f"{video}#00004",
            "video": video,
            "class_name": class_name,
            "predicted": predicted,
            "confidence": confidence,
            "correct": class_name == predicted,
            "valid_frames": 8,
            "frame_predicted": ["sit"] * 4 + [predicted] * 26,
            "frame_confidence": [confidence] * 30,
        }
        for video, class_name, predicted, confidence in CLIPS
    ]
    pd.DataFrame(rows).to_parquet(directory / "predictions.parquet")
    attention_NTKK = np.full((len(rows), 30, 7, 7), 0.001, np.float32)
    attention_NTKK[:, :, 6, 0] = 0.952
    with h5py.File(directory / "attention.h5", "w") as file:
        file["attention"] = attention_NTKK
        file.create_dataset("clip", data=[row["clip"] for row in rows], dtype=h5py.string_dtype())
    return directory


def render(evaluation: Path, videos: Callable[[str], Path], directory: Path, params: HeatmapsParams = SMALL) -> dict:
    directory.mkdir()
    render_heatmaps(evaluation, videos, directory, params, fps=FPS)
    return json.loads((directory / "heatmaps.json").read_text(encoding="utf-8"))


def test_videos_hold_the_valid_frames_with_the_heat_over_them(
    evaluation: Path, videos: Callable[[str], Path], tmp_path: Path
) -> None:
    clip = render(evaluation, videos, tmp_path / "out")["clips"][0]
    mp4 = tmp_path / "out" / clip["mp4"]
    info = probe(mp4)
    assert (info.width, info.height, info.fps) == (160, 160, FPS)
    frames = [frame.astype(int) for frame in read_frames(mp4)]
    assert len(frames) == 8
    # Away from attention and text the frames are the video's own, from its frame 4 on.
    assert [round(frame[80, 120].mean() / 10) for frame in frames] == list(range(8, 16))
    # The lower left cell is coloured: its channels part.
    assert min(np.ptp(frame[155, 5]) for frame in frames) > 50


def test_gif_and_poster_are_there_and_small(evaluation: Path, videos: Callable[[str], Path], tmp_path: Path) -> None:
    for clip in render(evaluation, videos, tmp_path / "out")["clips"]:
        with Image.open(tmp_path / "out" / clip["gif"]) as gif:
            assert (gif.size, gif.n_frames) == ((80, 80), 8)
        with Image.open(tmp_path / "out" / clip["poster"]) as poster:
            assert poster.size == (320, 320)


def test_plain_and_still_are_the_clip_itself_in_its_own_shape(
    evaluation: Path, videos: Callable[[str], Path], tmp_path: Path
) -> None:
    listed = render(evaluation, videos, tmp_path / "out")
    assert (listed["grid"], listed["fps"]) == (7, FPS)
    for clip in listed["clips"]:
        info = probe(tmp_path / "out" / clip["plain"])
        assert (info.codec, info.width, info.height, info.fps) == ("h264", 64, 48, FPS)
        frames = [frame.astype(int) for frame in read_frames(tmp_path / "out" / clip["plain"])]
        # Nothing is drawn: every frame is of one grey, that of the video from its frame 4 on.
        assert [round(frame.mean() / 10) for frame in frames] == list(range(8, 16))
        assert max(np.ptp(frame) for frame in frames) <= 4
        with Image.open(tmp_path / "out" / clip["still"]) as still:
            assert (still.format, still.size) == ("JPEG", (64, 48))
            assert round(np.asarray(still).mean() / 10) == 12


def test_two_models_that_chose_a_clip_write_equal_plain_files(
    evaluation: Path, videos: Callable[[str], Path], tmp_path: Path
) -> None:
    first = render(evaluation, videos, tmp_path / "one")
    with h5py.File(evaluation / "attention.h5", "a") as file:
        file["attention"][...] = file["attention"][...][:, :, ::-1]
    table = pd.read_parquet(evaluation / "predictions.parquet")
    table.assign(confidence=table["confidence"] / 2).to_parquet(evaluation / "predictions.parquet")
    second = render(evaluation, videos, tmp_path / "two", SMALL.model_copy(update={"side": 100, "scale": "share"}))
    for one, two in zip(first["clips"], second["clips"], strict=True):
        assert one["clip"] == two["clip"]
        for name in ("plain", "still"):
            assert (tmp_path / "one" / one[name]).read_bytes() == (tmp_path / "two" / two[name]).read_bytes()
        assert (tmp_path / "one" / one["mp4"]).read_bytes() != (tmp_path / "two" / two["mp4"]).read_bytes()


@pytest.mark.parametrize(
    ("size", "drawn", "plain"),
    [
        ((64, 48), (160, 120), (64, 48)),
        ((361, 641), (90, 160), (136, 240)),  # upright, and odd
        ((1280, 720), (160, 90), (426, 240)),
        ((1000, 10), (160, 2), (1000, 10)),
    ],
)
def test_original_aspect_has_even_sides_the_longer_as_asked(
    size: tuple[int, int], drawn: tuple[int, int], plain: tuple[int, int]
) -> None:
    painter = Painter(SMALL.model_copy(update={"aspect": "original"}), 7, size)
    map_KK = np.zeros((7, 7), np.float32)
    map_KK[6, 0] = 1
    picture = painter.colour(Image.new("RGB", size, (90, 90, 90)), map_KK)
    small = painter.shrink(picture)
    for labelled in (picture, small):
        painter.label(labelled, "run", "run", 0.9)
    assert picture.size == drawn
    assert max(small.size) == 80
    assert fitting_plain(size) == plain
    if min(drawn) > 60:
        lower_left, lower_right = picture.getpixel((4, drawn[1] - 4)), picture.getpixel((drawn[0] - 4, drawn[1] - 4))
        assert np.ptp(lower_left) > 50
        assert lower_right == (90, 90, 90)


@pytest.mark.parametrize("scale", ["article", "share"])
def test_even_attention_leaves_frames_alone_on_both_scales(scale: str) -> None:
    painter = Painter(SMALL.model_copy(update={"scale": scale}), 7, (64, 48))
    picture = painter.colour(Image.new("RGB", (64, 48), (90, 90, 90)), np.full((7, 7), 1 / 49, np.float32))
    painter.label(picture, None, "run", 0.9)
    assert (np.asarray(picture)[40:] == 90).all()


def test_the_list_says_what_was_chosen_and_why(evaluation: Path, videos: Callable[[str], Path], tmp_path: Path) -> None:
    listed = render(evaluation, videos, tmp_path / "out")
    assert [(clip["video"], clip["outcome"]) for clip in listed["clips"]] == [
        ("run/#1 (a) é.avi", "success"),
        ("sit/c.avi", "success"),
        ("run/b.avi", "failure"),
    ]
    assert listed["clips"][2]["mp4"] == "03_failure_run.mp4"
    assert listed["clips"][2]["rule"] == listed["rules"]["failure"]
    assert listed["clips"][0]["frame_predicted"] == ["sit"] * 4 + ["run"] * 4
    assert listed["notes"] == []


def test_equal_input_gives_equal_bytes(evaluation: Path, videos: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        render(evaluation, videos, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_no_failure_to_show_is_said_and_no_error(evaluation: Path, videos: Callable[[str], Path], tmp_path: Path) -> None:
    table = pd.read_parquet(evaluation / "predictions.parquet")
    table[table["correct"]].to_parquet(evaluation / "predictions.parquet")
    listed = render(evaluation, videos, tmp_path / "out")
    assert listed["notes"] == ["failures: none to show, no clip of the test split is wrong"]
    assert {clip["outcome"] for clip in listed["clips"]} == {"success"}


def test_counts_and_progress(evaluation: Path, videos: Callable[[str], Path], tmp_path: Path) -> None:
    done: list[int] = []
    (tmp_path / "out").mkdir()
    counts = render_heatmaps(evaluation, videos, tmp_path / "out", SMALL, fps=FPS, on_clip=lambda clip: done.append(1))
    assert counts == {"successes": 2, "failures": 1}
    assert len(done) == 3


def test_a_video_shorter_than_its_clip_is_named(evaluation: Path, videos: Callable[[str], Path], tmp_path: Path) -> None:
    table = pd.read_parquet(evaluation / "predictions.parquet")
    table.assign(valid_frames=20).to_parquet(evaluation / "predictions.parquet")
    with pytest.raises(ValueError, match=r"run/#1 \(a\) é.avi#00004: .* ends after 8 of the clip's 20 frames"):
        render(evaluation, videos, tmp_path / "out")
    assert not list((tmp_path / "out").glob("01_*"))


def test_as_many_clips_are_drawn_at_once_as_there_are_cores(
    videos, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rendering, "num_cores", lambda: 2)
    lock, under_way, most = threading.Lock(), [], []

    def render(self, clip, *args):
        with lock:
            under_way.append(clip)
            most.append(len(under_way))
        time.sleep(0.1)
        with lock:
            under_way.remove(clip)
        return {"clip": clip["clip"]}

    monkeypatch.setattr(rendering.ClipRenderer, "render", render)
    assert render_heatmaps(evaluation, videos, tmp_path, SMALL, fps=FPS) == {"successes": 2, "failures": 1}
    assert len(most) == 3
    assert max(most) == 2


def test_large_frames_are_scaled_while_they_are_decoded(tmp_path: Path):
    with VideoWriter(tmp_path / "large.mp4", width=640, height=320, fps=FPS, preset="ultrafast") as writer:
        for _ in range(3):
            writer.write(np.full((320, 640, 3), 100, np.uint8))
    clip = {"clip": "large#00000", "valid_frames": 3}
    frames = list(rendering._clip_frames(clip, tmp_path / "large.mp4", FPS, max_side=2 * SMALL.side))
    assert [frame.shape for frame in frames] == [(160, 320, 3)] * 3
