"""Read official split files: `<class>_test_split<1|2|3>.txt` with a video and its label on each line."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from pipeline_lib.errors import UserError

LABELS = {"0": "unused", "1": "train", "2": "test"}
"""Meaning of the digit after a file name. HMDB-51's lines end in a space."""


def read_splits(splits: Path, fold: int) -> pd.DataFrame:
    """Read all split files of one fold.

    Returns:
        One row per video: video (`<class>/<file name>`), class_name, label (`unused`, `train` or `test`).

    Raises:
        UserError: no file for this fold, a malformed line, or a video listed twice.
    """
    pattern = re.compile(rf"(?P<class_name>.+)_test_split{fold}\.txt")
    files = {match["class_name"]: path for path in splits.iterdir() if (match := pattern.fullmatch(path.name))}
    if not files:
        raise UserError(f"{splits}: no split file `<class>_test_split{fold}.txt` for chunk.fold = {fold}")
    rows = [
        (f"{class_name}/{name}", class_name, label)
        for class_name, path in sorted(files.items())
        for name, label in _read_split_file(path).items()
    ]
    return pd.DataFrame(rows, columns=["video", "class_name", "label"], dtype="str")


def _read_split_file(path: Path) -> dict[str, str]:
    """Return the label of every file name."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, digit = line.rstrip().rpartition(" ")
        if not name.strip() or digit not in LABELS:
            raise UserError(
                f"{path}:{number}: {line!r} is not a line of a split file; "
                "accepted: `<video file> <label>`, label 0 unused, 1 train, 2 test"
            )
        if name in labels:
            raise UserError(f"{path}:{number}: {name} is listed twice; keep one line")
        labels[name] = LABELS[digit]
    return labels


def label_videos(videos: pd.DataFrame, listed: pd.DataFrame, splits: Path, fold: int) -> pd.Series:
    """Return the label of every video of the collection.

    Raises:
        UserError: a class without a split file, or a video that its split file does not list.
    """
    labels = videos["video"].map(listed.set_index("video")["label"])
    unknown = videos[labels.isna()]
    if len(unknown):
        video, class_name = unknown.iloc[0][["video", "class_name"]]
        path = splits / f"{class_name}_test_split{fold}.txt"
        if not path.exists():
            raise UserError(f"{splits}: no split file for class {class_name}; add {path.name}")
        others = f" (nor {len(unknown) - 1} other videos of the collection)" if len(unknown) > 1 else ""
        raise UserError(f"{path}: does not list {video}{others}; add a line for each: label 0 unused, 1 train, 2 test")
    return labels
