"""Read the features of models that see two streams: their channels side by side, step by step.

Shape suffixes: N clips, S steps of the first stream, K grid side, D feature channels of all streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline_lib.errors import UserError
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.steps import nearest_steps


class JoinedReader:
    """Context manager that reads several streams as one; each step of the first with the nearest step of the others.

    Its other properties are those of `FeatureReader`.
    """

    def __init__(self, readers: Sequence[FeatureReader]) -> None:
        self._readers = list(readers)

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
        for reader, part_NSKKD in zip(self._readers, parts, strict=True):
            step_S = torch.from_numpy(nearest_steps(reader.step_frames, self.step_frames))
            part_NSKKD.copy_(reader.load(clips)[:, step_S])
        return joined_NSKKD


def open_features(files: Sequence[Path], num_streams: int) -> FeatureReader | JoinedReader:
    """Return the reader of a model's features: the files of each stream one after the other, equally many."""
    if num_streams == 1:
        return FeatureReader(files)
    per_stream = len(files) // num_streams
    return JoinedReader([FeatureReader(files[number * per_stream :][:per_stream]) for number in range(num_streams)])
