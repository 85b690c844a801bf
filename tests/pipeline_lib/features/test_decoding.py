"""Decoding ahead: order kept, memory bounded, no thread or process left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.features import decoding
from pipeline_lib.features.decoding import LOOKAHEAD, read_ahead
from pipeline_lib.video.decoders import Shape


class FakeVideos:
    """Counts what is decoded and closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: dict[str, int] = {}
        self.closed: list[str] = []
        monkeypatch.setattr(decoding, "read_arrays", self.read)

    def read(self, path: Path, *, empty: Callable[[Shape], np.ndarray]) -> Iterator[np.ndarray]:
        try:
            for number in range(int(path.name)):
                self.decoded[path.name] = number + 1
                frames_NHWC = empty((2, 1, 1, 3))
                frames_NHWC[:] = number
                yield frames_NHWC
        finally:
            self.closed.append(path.name)


def names(*counts: int) -> list[tuple[str, Path]]:
    return [(f"v{count}", Path(str(count))) for count in counts]


def test_videos_and_frames_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeVideos(monkeypatch)
    opened = read_ahead(names(5, 0, 100, 3), threads=3)
    seen = {name: [int(frames_NHWC[1, 0, 0, 0]) for frames_NHWC in arrays] for name, arrays in opened}
    assert list(seen) == ["v5", "v0", "v100", "v3"]
    assert seen == {f"v{count}": list(range(count)) for count in (5, 0, 100, 3)}


def test_lookahead_is_bounded_and_leaving_early_stops_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = FakeVideos(monkeypatch)
    before = threading.active_count()
    opened = read_ahead(names(200, 201, 202, 203), threads=2)
    name, arrays = next(opened)
    next(arrays)
    opened.close()
    assert name == "v200"
    assert sorted(videos.closed) == ["200", "201"]
    assert max(videos.decoded.values()) <= LOOKAHEAD + 2
    assert threading.active_count() == before


def test_real_frames_pass_unchanged(shard: Path) -> None:
    from pipeline_lib.video.reading import read_frames

    path = shard / "videos" / "run" / "c.avi.mp4"
    [frames] = [np.concatenate(list(arrays)) for _, arrays in read_ahead([("run/c.avi", path)])]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(frames, read_frames(path), strict=True))
