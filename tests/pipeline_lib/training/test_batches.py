"""Clips batch by batch: the same from memory and from disk, where the next are read ahead."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.training.batches import READ_AHEAD, ClipLoader, fits_in_memory
from tests.pipeline_lib.conftest import FeatureStore

CPU = torch.device("cpu")
CLIPS = pd.DataFrame({"clip": [f"c{n}" for n in range(11)], "valid_frames": range(1, 12), "class_name": ["a", "b"] * 5 + ["a"]})


class FakeReader:
    """Gives each clip its number; counts what it was asked for."""

    step_frames = tuple(range(11))

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def load(self, clips: Sequence[str], *, pinned: bool = False) -> torch.Tensor:
        assert not pinned, "a GPU's memory, asked for on a CPU"
        self.asked.append(list(clips))
        if "c99" in clips:
            raise ValueError("c99 has no features")
        return torch.tensor([float(clip[1:]) for clip in clips]).half().view(-1, 1, 1, 1, 1)


def make_loader(reader: FakeReader, *, in_memory: bool, clips: pd.DataFrame = CLIPS) -> ClipLoader:
    return ClipLoader(reader, clips, ["a", "b"], CPU, in_memory=in_memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [None, torch.tensor([3, 1, 10, 0, 2, 4, 6, 5, 9, 8, 7])])
def test_batches_from_disk_are_those_from_memory(order: torch.Tensor | None) -> None:
    here, there = (list(make_loader(FakeReader(), in_memory=in_memory).batches(4, order)) for in_memory in (True, False))
    assert [len(batch.labels_B) for batch in there] == [4, 4, 3]
    for ours, theirs in zip(here, there, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert ours.features_BTKKD.dtype == theirs.features_BTKKD.dtype == torch.float32
        assert ours.features_BTKKD.stride() == theirs.features_BTKKD.stride()
        assert torch.equal(ours.valid_steps_B, ours.features_BTKKD.flatten().long() + 1)


def test_only_so_many_batches_are_read_ahead_and_leaving_early_stops_it() -> None:
    reader, before = FakeReader(), threading.active_count()
    batches = make_loader(reader, in_memory=False).batches(1)
    next(batches)
    time.sleep(0.1)
    assert 1 <= len(reader.asked) <= 1 + READ_AHEAD
    batches.close()  # type: ignore[attr-defined]
    assert len(reader.asked) <= 1 + READ_AHEAD
    assert threading.active_count() == before


def test_waiting_for_the_disk_is_counted() -> None:
    class SlowReader(FakeReader):
        def load(self, clips: Sequence[str], *, pinned: bool = False) -> torch.Tensor:
            time.sleep(0.05)
            return super().load(clips, pinned=pinned)

    here, there = (make_loader(SlowReader(), in_memory=in_memory) for in_memory in (True, False))
    assert len(list(here.batches(4))) == len(list(there.batches(4))) == 3
    assert here.seconds_waited == 0
    assert there.seconds_waited > 0.05


def test_what_cannot_be_read_is_raised_where_the_batch_is_used() -> None:
    clips = pd.concat([CLIPS, CLIPS.head(1).assign(clip="c99")])
    batches = make_loader(FakeReader(), in_memory=False, clips=clips).batches(4)
    assert len(next(batches).labels_B) == 4
    with pytest.raises(ValueError, match="c99"):
        list(batches)


class CountingReader(FeatureReader):
    """Takes its time, and counts how often it loads."""

    loads: list[int] = []  # noqa: RUF012

    def load(self, clips: Sequence[str], *, pinned: bool = False) -> torch.Tensor:
        self.loads.append(len(clips))
        time.sleep(0.02)
        return super().load(clips, pinned=pinned)


@pytest.fixture
def files(feature_store: FeatureStore, tmp_path: Path) -> list[Path]:
    """Return copies that no other test has in memory."""
    CountingReader.loads.clear()
    return [shutil.copy(path, tmp_path / path.name) for path in feature_store.files]


def loader_of(files: list[Path], clips: pd.DataFrame) -> ClipLoader:
    with CountingReader(files) as reader:
        return ClipLoader(reader, clips, sorted(set(clips["class_name"])), CPU, in_memory=True)


def test_sources_of_the_same_clips_hold_one_copy_loaded_once(feature_store: FeatureStore, files: list[Path]) -> None:
    clips = feature_store.clips.head(10)
    with ThreadPoolExecutor(4) as pool:
        loaders = list(pool.map(lambda _: loader_of(files, clips), range(4)))
    assert CountingReader.loads == [10]
    assert len({id(loader._cached) for loader in loaders}) == 1
    others = [loader_of(files, clips.head(9)), loader_of(files, clips.iloc[::-1])]
    assert CountingReader.loads == [10, 9, 10]
    whole, backwards = (next(loader.batches(10)).features_BTKKD for loader in (loaders[0], others[1]))
    assert torch.equal(whole, backwards.flip(0))


def test_the_copy_is_freed_with_the_last_who_uses_it(feature_store: FeatureStore, files: list[Path]) -> None:
    clips = feature_store.clips.head(10)
    gc.disable()
    try:
        one, other = loader_of(files, clips), loader_of(files, clips)
        copy = weakref.ref(one._cached)  # type: ignore[arg-type]
        del one
        assert copy() is not None
        del other
        assert copy() is None
    finally:
        gc.enable()
    loader_of(files, clips)
    assert CountingReader.loads == [10, 10]


def test_files_written_anew_are_loaded_anew(feature_store: FeatureStore, files: list[Path]) -> None:
    clips = feature_store.clips.head(10)
    before = loader_of(files, clips)
    shutil.copy(files[0], files[0].with_suffix(".new"))
    files[0].with_suffix(".new").replace(files[0])
    after = loader_of(files, clips)
    assert CountingReader.loads == [10, 10]
    assert before._cached is not after._cached


def test_what_is_in_memory_fits_there_however_full_it_is(
    feature_store: FeatureStore, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = feature_store.clips.head(10), feature_store.clips.iloc[10:12]
    splits = [part["clip"].tolist() for part in (train, val)]
    clip_bytes = 2 * 6 * 4 * 4 * 8

    class Memory:
        available = 2 * 4 * clip_bytes  # half of it may be filled

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with FeatureReader(files) as reader:
        assert not fits_in_memory(reader, splits, CPU)
        loader = loader_of(files, train)
        assert fits_in_memory(reader, splits, CPU)  # two clips are missing
        Memory.available = 0
        assert not fits_in_memory(reader, splits, CPU)
        assert fits_in_memory(reader, splits[:1], CPU)
        del loader
        assert not fits_in_memory(reader, splits[:1], CPU)


def test_a_reader_of_something_else_shares_nothing() -> None:
    reader = FakeReader()
    loaders = [make_loader(reader, in_memory=True) for _ in range(2)]
    assert len(reader.asked) == len(loaders)
