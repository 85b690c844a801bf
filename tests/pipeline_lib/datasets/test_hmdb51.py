"""HMDB-51's completeness, against its real split files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline_lib.datasets.hmdb51 import DATA_SET


@pytest.fixture(scope="module")
def splits(shared: Path) -> Path:
    return shared / "data" / "hmdb51_splits"


@pytest.fixture(scope="module")
def names(splits: Path) -> list[str]:
    """Return the names of all videos, `<class>/<file>`."""
    files = sorted(splits.glob("*_test_split1.txt"))
    return [f"{file.name[:-16]}/{line.rsplit(maxsplit=1)[0]}" for file in files for line in file.read_text().splitlines()]


def test_the_whole_collection_is_accepted(splits: Path, names: list[str]):
    assert len(names) == 6766
    DATA_SET.check_complete(names, splits)


def test_missing_videos_are_named_one_a_line(splits: Path, names: list[str]):
    with pytest.raises(
        ValueError, match=r"^HMDB-51 is incomplete: 51 of 51 classes, 6764 of 6766 videos, 153 of 153 "
    ) as caught:
        DATA_SET.check_complete(names[2:], splits)
    assert str(caught.value).splitlines()[1:] == [f"missing: {name}" for name in names[:2]]


def test_many_missing_videos_are_cut_short(splits: Path, names: list[str]):
    with pytest.raises(ValueError, match=r"51 of 51 classes, 5766 of 6766 videos") as caught:
        DATA_SET.check_complete(names[:-1000], splits)
    lines = str(caught.value).splitlines()
    assert len(lines) == 202
    assert lines[-1] == "and 800 more missing"


def test_missing_split_files_and_foreign_videos_are_named(splits: Path, names: list[str], tmp_path: Path):
    shutil.copytree(splits, tmp_path / "splits")
    (tmp_path / "splits" / "wave_test_split2.txt").unlink()
    with pytest.raises(ValueError, match=r"6767 of 6766 videos, 152 of 153 split files") as caught:
        DATA_SET.check_complete([*names, "wave/mine.avi"], tmp_path / "splits")
    assert str(caught.value).splitlines()[1:] == [
        "missing: wave_test_split2.txt",
        "not in the split files: wave/mine.avi",
    ]


def test_a_renamed_video_is_noticed_though_the_counts_fit(splits: Path, names: list[str]):
    with pytest.raises(ValueError, match="6766 of 6766 videos") as caught:
        DATA_SET.check_complete([*names[1:], "wave/mine.avi"], splits)
    assert str(caught.value).splitlines()[1:] == [f"missing: {names[0]}", "not in the split files: wave/mine.avi"]
