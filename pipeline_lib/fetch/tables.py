"""Optional tables of a collection: boxes of actors, and groups of videos."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline_lib.addresses import redact
from pipeline_lib.artifacts import layout
from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

BOXES_HEADER = ["video", "time_seconds", "x0", "y0", "x1", "y1"]
GROUPS_HEADER = ["video", "group"]
OLD_GROUPS_HEADER = ["video", "source"]

MAX_MISTAKES = 5
"""Maximum number of mistakes to report per table."""


def copy_boxes(boxes: str | None, directory: Path) -> None:
    """Check the table of actors' boxes and copy it to `directory/boxes.csv`; do nothing for None.

    Raises:
        UserError: one line for each of the first mistakes, with the number of the row (the header is row 1).
    """
    if boxes is None:
        return
    rows = _read_csv("fetch.boxes", boxes)
    header = rows[0] if rows else []
    if header != BOXES_HEADER:
        accepted = ",".join(BOXES_HEADER)
        raise UserError(f"fetch.boxes: {boxes}: its first line must be {accepted}, found {','.join(header)}")
    mistakes = [f"row {number}: {mistake}" for number, row in enumerate(rows[1:], start=2) if (mistake := _box_mistake(row))]
    if mistakes:
        more = [f"... and {len(mistakes) - MAX_MISTAKES} more like these"] if len(mistakes) > MAX_MISTAKES else []
        raise UserError("\n".join(f"fetch.boxes: {boxes}: {line}" for line in [*mistakes[:MAX_MISTAKES], *more]))
    _write_csv(directory / layout.BOXES, rows)


def check_boxed_videos(boxes: str | None, videos: Collection[str]) -> None:
    """Warn about boxes of videos that are not in the collection.

    Raises:
        UserError: none of the videos is in the collection, so their names must be of another form.
    """
    if boxes is None:
        return
    boxed = dict.fromkeys(row[0] for row in _read_csv("fetch.boxes", boxes)[1:])
    unknown = [video for video in boxed if video not in videos]
    if unknown and len(unknown) == len(boxed):
        raise UserError(
            f"fetch.boxes: {boxes}: none of its videos is in the collection; names must be like {next(iter(videos))}, "
            f"found {unknown[0]}"
        )
    if unknown:
        logger.warning("fetch.boxes: %d of %d videos are not in the collection: %s", len(unknown), len(boxed), unknown[0])


def _box_mistake(row: Sequence[str]) -> str | None:
    """Return the mistake in a row of the table of boxes, or None."""
    if len(row) != len(BOXES_HEADER) or "/" not in row[0]:
        return f"must be class/video and five numbers, found {','.join(row)}"
    try:
        time_seconds, x0, y0, x1, y1 = (float(value) for value in row[1:])
    except ValueError:
        return f"{','.join(row[1:])} must be five numbers"
    if not 0 <= time_seconds < math.inf:
        return f"time_seconds = {row[1]}: must be 0 or more"
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        return f"x0,y0,x1,y1 = {','.join(row[2:])}: must be fractions of the frame (0 to 1), x0 below x1 and y0 below y1"
    return None


def copy_groups(groups: str | None, directory: Path) -> None:
    """Check the table of groups and copy it to `directory/groups.csv` with a header; do nothing for None."""
    if groups is None:
        return
    rows = _read_csv("fetch.groups", groups)
    if rows and rows[0] in (GROUPS_HEADER, OLD_GROUPS_HEADER):
        rows = rows[1:]
    for row in rows:
        if len(row) != 2 or "/" not in row[0]:
            raise UserError(f"fetch.groups: {groups}: every line must be class/video,group; found {','.join(row)}")
    _write_csv(directory / layout.GROUPS, [GROUPS_HEADER, *rows])


def _read_csv(key: str, name: str) -> list[list[str]]:
    path = Path(name).expanduser()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise UserError(f"{key}: {redact(name)}: no such file: check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{key}: {redact(name)}: cannot be read as a CSV file in UTF-8 ({error})") from None


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
