"""Class probabilities of every frame of a split, as a model's evaluation stores them for score fusion."""

# N clips, T frames of a clip, C classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline_lib.artifacts import layout


@dataclass(frozen=True)
class SplitProbabilities:
    """One model's class probabilities on the clips of one split."""

    classes: tuple[str, ...]
    clips: tuple[str, ...]
    probability_NTC: np.ndarray
    """fp32; padded frames are included."""


def write_probabilities(
    directory: Path, split: str, clips: Sequence[str], classes: Sequence[str], probability_NTC: np.ndarray
) -> None:
    """Add one split's class probabilities to probabilities.h5 of a folder."""
    with h5py.File(directory / layout.PROBABILITIES, "a") as file:
        group = file.create_group(split)
        probability = group.create_dataset("probability", data=probability_NTC.astype(np.float32), track_times=False)
        probability.attrs["axes"] = "clip,frame,class"
        for name, values in (("clip", clips), ("class", classes)):
            group.create_dataset(name, data=list(values), dtype=h5py.string_dtype(), track_times=False)


def read_probabilities(directory: Path, split: str) -> SplitProbabilities | None:
    """Read what `write_probabilities` wrote; return None if the split had no clips."""
    with h5py.File(directory / layout.PROBABILITIES, "r") as file:
        if split not in file:
            return None
        group = file[split]
        classes, clips = (tuple(group[name].asstr()[:]) for name in ("class", "clip"))
        return SplitProbabilities(classes, clips, group["probability"][:])
