"""Find the data set that a name stands for, the format of split files, and the group of a file name.

The registry is `DataSetName` in `pipeline_lib/params/stages.py`. The data set called `NAME` there is the object `DATA_SET` of
the module `pipeline_lib/datasets/NAME.py`.
"""

from __future__ import annotations

import functools
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_args

from pipeline_lib.datasets.data_set import DataSet
from pipeline_lib.datasets.split_files import SplitFormat
from pipeline_lib.params.stages import DataSetName

NAMES: tuple[str, ...] = get_args(DataSetName)


def find_data_set(kind: str) -> DataSet | None:
    """Return the data set that `fetch.kind` names; None for a collection that is no known data set."""
    return _load(kind) if kind in NAMES else None


def split_formats() -> list[SplitFormat]:
    """Return the formats of split files that can be read, those of all data sets."""
    return [_load(name).split_format for name in NAMES]


def find_split_format(splits: Path) -> SplitFormat:
    """Return the format of the split files in a folder; if there are none, the first, whose reader says so."""
    formats = split_formats()
    return next((split_format for split_format in formats if split_format.lists(splits)), formats[0])


def group_of_name(video: str) -> str:
    """Return the group of a video according to its file name; a name of no data set's pattern is its own group."""
    folder, slash, name = video.rpartition("/")
    stem = name.rpartition(".")[0] or name
    groups = (_load(name).group(stem) for name in NAMES)
    return next((group for group in groups if group is not None), f"{folder}{slash}{stem}")


def _load(name: str) -> DataSet:
    data_set: DataSet = _module(name).DATA_SET
    return data_set


@functools.cache  # a million names are looked up
def _module(name: str) -> ModuleType:
    return import_module(f"pipeline_lib.datasets.{name}")
