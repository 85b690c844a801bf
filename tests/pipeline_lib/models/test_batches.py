"""Clips batch by batch: the same from memory and from disk, where the next are read ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pandas as pd
import pytest
import torch

from pipeline_lib.models.batches import READ_AHEAD, ClipSource

CPU = torch.device("cpu")
CLIPS = pd.DataFrame({"clip": [f"c{n}" for n in range(11)], "valid_frames": range(1, 12), "class_name": ["a", "b"] * 5 + ["a"]})


class FakeReader:
    """Gives each clip its number; counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def load(self, clips: Sequence[str], *, pinned: bool = False) -> torch.Tensor:
        assert not pinned, "a GPU's memory, asked for on a CPU"
        self.asked.append(list(clips))
        if "c99" in clips:
            raise ValueError("c99 has no features")
        return torch.tensor([float(clip[1:]) for clip in clips]).half().view(-1, 1, 1, 1, 1)


def make_source(reader: FakeReader, *, in_memory: bool, clips: pd.DataFrame = CLIPS) -> ClipSource:
    return ClipSource(reader, clips, ["a", "b"], CPU, in_memory=in_memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [None, torch.tensor([3, 1, 10, 0, 2, 4, 6, 5, 9, 8, 7])])
def test_batches_from_disk_are_those_from_memory(order: torch.Tensor | None) -> None:
    here, there = (list(make_source(FakeReader(), in_memory=in_memory).batches(4, order)) for in_memory in (True, False))
    assert [len(batch.labels_B) for batch in there] == [4, 4, 3]
    for ours, theirs in zip(here, there, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert torch.equal(ours.valid_frames_B, ours.features_BTKKD.flatten().long() + 1)


def test_only_so_many_batches_are_read_ahead_and_leaving_early_stops_it() -> None:
    reader, before = FakeReader(), threading.active_count()
    batches = make_source(reader, in_memory=False).batches(1)
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

    here, there = (make_source(SlowReader(), in_memory=in_memory) for in_memory in (True, False))
    assert len(list(here.batches(4))) == len(list(there.batches(4))) == 3
    assert here.seconds_waited == 0
    assert there.seconds_waited > 0.05


def test_what_cannot_be_read_is_raised_where_the_batch_is_used() -> None:
    clips = pd.concat([CLIPS, CLIPS.head(1).assign(clip="c99")])
    batches = make_source(FakeReader(), in_memory=False, clips=clips).batches(4)
    assert len(next(batches).labels_B) == 4
    with pytest.raises(ValueError, match="c99"):
        list(batches)
