"""Read the features of models that see two streams: their channels side by side, step by step.

Shape suffixes: N clips, S steps of the first stream, K grid side, D feature channels of all streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline_lib.errors import UserError
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.steps import nearest_steps


class JoinedReader:
    """Context manager that reads several streams as one; each step of the first with the nearest step of the others.

    Its other properties are those of `FeatureReader`.
    """

    def __init__(self, readers: Sequence[FeatureReader], others: Mapping[str, str] | None = None) -> None:
        """Join the readers; all but the first read, in place of a clip, the one that `others` names (`other_clips`)."""
        self._readers = list(readers)
        self.others = dict(others or {})

    def __enter__(self) -> JoinedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        with ExitStack() as stack:
            for reader in self._readers:
                stack.callback(reader.close)

    @property
    def paths(self) -> list[Path]:
        """The files of all streams."""
        return [path for reader in self._readers for path in reader.paths]

    @property
    def channels(self) -> tuple[int, ...]:
        """Feature channels of each stream."""
        return tuple(reader.shape[-1] for reader in self._readers)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape (N, S, K, K, D).

        Raises:
            UserError: the streams have grids of different sizes.
        """
        grids = [reader.shape[2] for reader in self._readers]
        if len(set(grids)) > 1:
            raise UserError(
                f"the streams that a model reads have grids of {' and '.join(map(str, grids))} cells per side; "
                "give them the same `grid` in features.streams"
            )
        return (*self._readers[0].shape[:-1], sum(self.channels))

    @property
    def step_frames(self) -> tuple[int, ...]:
        """The frame in the middle of each step of a clip."""
        return self._readers[0].step_frames

    @property
    def clips(self) -> list[str]:
        """Ids of all clips, file by file."""
        return self._readers[0].clips

    @property
    def provenance(self) -> dict[str, Any]:
        """What each stream was made with, in `streams`."""
        return {"streams": [reader.provenance for reader in self._readers]}

    def load(self, clips: Sequence[str], *, pinned: bool = False) -> Tensor:
        """Return features_NSKKD (float16, on the CPU) of the given clips; see `FeatureReader.load`."""
        joined_NSKKD = torch.empty((len(clips), *self.shape[1:]), dtype=torch.float16, pin_memory=pinned)
        parts = joined_NSKKD.split(self.channels, dim=-1)
        others = [self.others.get(clip, clip) for clip in clips]
        for reader, part_NSKKD in zip(self._readers, parts, strict=True):
            step_S = torch.from_numpy(nearest_steps(reader.step_frames, self.step_frames))
            part_NSKKD.copy_(reader.load(clips if reader is self._readers[0] else others)[:, step_S])
        return joined_NSKKD


def other_clips(clips: pd.DataFrame, seed: int) -> dict[str, str]:
    """Return another clip of the same split for every clip, each once, so that what is read for a clip depends on no batch.

    The split's groups are put in a random order, and its clips shifted by the size of the largest group: the other clip is of
    another group, unless that group is more than half of the split.

    Raises:
        UserError: a split has a single clip.
    """
    found: dict[str, str] = {}
    for split, table in clips.sort_values("clip").groupby("split"):
        if len(table) == 1:
            raise UserError(f"motion = 'shuffled': the {split} split has one clip, and no other to take the flow of")
        rng = np.random.default_rng(seed)
        order = {group: place for place, group in enumerate(rng.permutation(sorted(table["group"].unique())))}
        names = table.sort_values("group", key=lambda group: group.map(order), kind="stable")["clip"].to_numpy()
        largest = int(table["group"].value_counts().iloc[0])
        found |= dict(zip(names, np.roll(names, -min(largest, len(names) // 2)), strict=True))
    return found


def open_features(
    files: Sequence[Path], num_streams: int, others: Mapping[str, str] | None = None
) -> FeatureReader | JoinedReader:
    """Return the reader of a model's features: the files of each stream one after the other, equally many.

    `others` are for `JoinedReader`.
    """
    if num_streams == 1:
        return FeatureReader(files)
    per_stream = len(files) // num_streams
    readers = [FeatureReader(files[number * per_stream :][:per_stream]) for number in range(num_streams)]
    return JoinedReader(readers, others)
