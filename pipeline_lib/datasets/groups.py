"""Determine the group of each video. Videos of a group are cut from the same footage and must be in the same split."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from pipeline_lib.datasets.registry import group_of_name
from pipeline_lib.errors import UserError


def video_groups(videos: pd.DataFrame, groups: Path | None) -> pd.Series:
    """Return the group of every video, `<footage>_<class>` as in HMDB-51's file names.

    Groups are taken from the table `groups` if given. Otherwise they follow from the file name if it has the pattern
    of a known data set, and every other video is its own group.

    Raises:
        UserError: the table cannot be read, contradicts itself, or lacks a video.
    """
    if groups is None:
        return videos["video"].map(group_of_name)
    footage = videos["video"].map(_read_groups(groups))
    unknown = videos.loc[footage.isna(), "video"]
    if len(unknown):
        raise UserError(f"{groups}: lacks {len(unknown)} videos, such as {unknown.iloc[0]}; add a line for each")
    return footage + "_" + videos["class_name"]


def _read_groups(path: Path) -> pd.Series:
    """Read lines `<class>/<video file>,<group>`; a first line `video,group` is a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table of groups: {error}") from None
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not row or row in (["video", "group"], ["video", "source"]):
            continue
        if len(row) != 2 or not all(row):
            raise UserError(f"{path}:{number}: {','.join(row)!r} is not accepted; give `<class>/<video file>,<group>`")
        video, footage = row
        if groups.setdefault(video, footage) != footage:
            raise UserError(f"{path}:{number}: a second group for {video}; keep one")
    return pd.Series(groups, dtype="str")
