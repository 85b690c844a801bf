"""Decoding ahead: order kept, memory bounded, no thread or process left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.video import decoders, decoding
from pipeline_lib.video.decoders import RGB, DecoderDiedError, Shape, Wanted
from pipeline_lib.video.decoding import LOOKAHEAD, read_ahead
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.writing import VideoWriter
from tests.pipeline_lib.video.program import program_pixels


class FakeVideos:
    """Counts what is decoded and closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: dict[str, int] = {}
        self.closed: list[str] = []
        monkeypatch.setattr(decoding, "read_images", self.read)

    def read(
        self, path: Path, wanted: list[Wanted], *, empty: Callable[[Shape], np.ndarray], max_side: int | None
    ) -> Iterator[tuple[Wanted, np.ndarray]]:
        try:
            for number in range(int(path.name)):
                self.decoded[path.name] = number + 1
                frames_NHWC = empty((2, 1, 1, 3))
                frames_NHWC[:] = number
                yield RGB, frames_NHWC
        finally:
            self.closed.append(path.name)


def names(*counts: int) -> list[tuple[str, Path]]:
    return [(f"v{count}", Path(str(count))) for count in counts]


def test_videos_and_frames_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeVideos(monkeypatch)
    opened = read_ahead(names(5, 0, 100, 3), workers=3)
    seen = {name: [int(frames_NHWC[1, 0, 0, 0]) for frames_NHWC in arrays] for name, arrays in opened}
    assert list(seen) == ["v5", "v0", "v100", "v3"]
    assert seen == {f"v{count}": list(range(count)) for count in (5, 0, 100, 3)}


def test_lookahead_is_bounded_and_leaving_early_stops_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = FakeVideos(monkeypatch)
    before = threading.active_count()
    opened = read_ahead(names(200, 201, 202, 203), workers=2)
    name, arrays = next(opened)
    next(arrays)
    opened.close()
    assert name == "v200"
    assert sorted(videos.closed) == ["200", "201"]
    assert max(videos.decoded.values()) <= LOOKAHEAD + 2
    assert threading.active_count() == before


def test_workers_finish_videos_that_the_lookahead_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all but one of them would wait for their turn, and nothing would be decoded in parallel."""
    videos = FakeVideos(monkeypatch)
    opened = read_ahead(names(5, 6, 7), workers=3, lookahead=5 + 6 + 7)  # one worker may be fast enough to take all
    next(opened)
    deadline = time.monotonic() + 10
    while len(videos.closed) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(videos.closed) == ["5", "6", "7"]
    opened.close()


def test_a_worker_takes_the_next_video_when_it_has_ended_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one with long videos would go on alone at the end, after the others have ended theirs."""
    may_end = threading.Event()
    others = [threading.Event() for _ in range(4)]

    def read(path: Path, *_: object, **__: object) -> Iterator[tuple[Wanted, np.ndarray]]:
        number = int(path.name)
        if number == 0:
            may_end.wait(30)
        else:
            others[number - 1].set()
        yield RGB, np.zeros((1, 1, 1, 3), np.uint8)

    monkeypatch.setattr(decoding, "read_images", read)
    opened = read_ahead(names(0, 1, 2, 3, 4), workers=2)
    reader = threading.Thread(target=lambda: [list(arrays) for _, arrays in opened])
    reader.start()
    have_begun = [event.wait(10) for event in others]
    may_end.set()
    reader.join()
    assert have_begun == [True] * 4


def test_what_is_left_unread_is_not_the_next_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeVideos(monkeypatch)
    seen = [(name, len(next(arrays))) for name, arrays in read_ahead(names(50, 7, 30), workers=1)]
    assert seen == [("v50", 2), ("v7", 2), ("v30", 2)]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (VideoError("cut off"), r"^bad: can no longer be decoded \(cut off\); run with `--refresh subsample`$"),
        (DecoderDiedError("the decoder was killed"), "^bad: the decoder was killed$"),
    ],
)
def test_a_video_that_fails_is_named_and_its_worker_goes_on(monkeypatch, error, message) -> None:
    def read(path: Path, *_: object, **__: object) -> Iterator[tuple[Wanted, np.ndarray]]:
        yield RGB, np.zeros((1, 1, 1, 3), np.uint8)
        if path.name == "bad":
            raise error

    monkeypatch.setattr(decoding, "read_images", read)
    opened = read_ahead([(name, Path(name)) for name in ("good", "bad", "better")], workers=1)
    assert len(list(next(opened)[1])) == 1
    with pytest.raises(ValueError, match=message):
        list(next(opened)[1])
    assert len(list(next(opened)[1])) == 1


@pytest.fixture
def one_core() -> Iterator[None]:
    """Run this thread, and the threads and processes that it starts, on one core."""
    decoders.close_idle_decoders()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)
    decoders.close_idle_decoders()


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("readers", [1, 2])
def test_a_late_video_is_waited_for_whatever_the_next_ones_hold(tmp_path, monkeypatch, readers: int) -> None:
    """One core with one shard, and as on a GPU with two: the second video of each fills its queue before the first begins."""
    paths = [tmp_path / f"{number}.mp4" for number in range(2 * readers)]
    for path in paths:
        with VideoWriter(path, width=640, height=480, fps=15, preset="ultrafast") as writer:
            for _ in range(18):
                writer.write(np.zeros((480, 640, 3), np.uint8))
    check_file = decoders.check_file

    def check_late(path: Path) -> None:
        if path in paths[:readers]:
            time.sleep(0.3)
        check_file(path)

    monkeypatch.setattr(decoders, "check_file", check_late)
    counts: dict[str, int] = {}

    def read(videos: list[Path]) -> None:
        named = [(path.stem, path) for path in videos]
        counts.update((name, sum(map(len, arrays))) for name, arrays in read_ahead(named, lookahead=1))

    threads = [threading.Thread(target=read, args=(paths[first::readers],), daemon=True) for first in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert counts == {path.stem: 18 for path in paths}


def test_real_frames_pass_unchanged(tmp_path: Path) -> None:
    path, random = tmp_path / "c.avi.mp4", np.random.default_rng(0)
    with VideoWriter(path, width=64, height=48, fps=15) as writer:
        for _ in range(9):
            writer.write(random.integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1))
    [frames] = [np.concatenate(list(arrays)) for _, arrays in read_ahead([("run/c.avi", path)])]
    assert len(frames) == 9
    assert frames.tobytes() == program_pixels(path)
