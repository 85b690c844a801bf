"""Finds out which videos come from one source: cut from the same footage, they must not cross parts."""

from __future__ import annotations

import csv
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from pipeline_lib.errors import UserError

HMDB51_NAME = re.compile(r"(?P<group>.+)_[fhlu]_(nm|cm)_np\d+_(fr|ba|le|ri)_(bad|med|goo)_\d+")
"""`<source>_<class>_<body part>_<camera motion>_np<people>_<viewpoint>_<quality>_<index>`; the group keeps the class."""

UCF101_NAME = re.compile(r"(?P<group>v_\w+_g\d+)_c\d+")


def source_groups(videos: pd.DataFrame, sources: Path | None) -> pd.Series:
    """Return the source group of every video: `<source>_<class>`, as HMDB-51's names have it.

    A table of sources decides if there is one. Without it the file name does, if it follows HMDB-51's or UCF101's pattern;
    any other video is a group of its own.

    Raises:
        UserError: the table is not one, contradicts itself, or does not name every video.
    """
    if sources is None:
        return videos["video"].map(group_of_name)
    source = videos["video"].map(_read_sources(sources))
    unknown = videos.loc[source.isna(), "video"]
    if len(unknown):
        raise UserError(f"{sources}: lacks {len(unknown)} videos, such as {unknown.iloc[0]}; add a line for each")
    return source + "_" + videos["class_name"]


def group_of_name(video: str) -> str:
    """Return the source group that a video's file name tells."""
    path = PurePosixPath(video)
    match = HMDB51_NAME.fullmatch(path.stem) or UCF101_NAME.fullmatch(path.stem)
    return match["group"] if match else str(path.with_suffix(""))


def _read_sources(path: Path) -> pd.Series:
    """Read lines `<class>/<video file>,<source>`; a first line `video,source` is a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table of sources: {error}") from None
    sources: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not row or row == ["video", "source"]:
            continue
        if len(row) != 2 or not all(row):
            raise UserError(f"{path}:{number}: {','.join(row)!r} is not accepted; give `<class>/<video file>,<source>`")
        video, source = row
        if sources.setdefault(video, source) != source:
            raise UserError(f"{path}:{number}: names a second source for {video}; keep one")
    return pd.Series(sources, dtype="str")
