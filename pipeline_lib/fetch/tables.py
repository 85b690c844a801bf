"""Tables that come with a collection: where the actors are, and which videos share a source."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

BOXES_HEADER = ["video", "time_seconds", "x0", "y0", "x1", "y1"]
SOURCES_HEADER = ["video", "source"]


def copy_boxes(boxes: str | None, directory: Path) -> None:
    """Copy the table of actors' boxes to `directory/boxes.csv`, if there is one."""
    if boxes is None:
        return
    rows = _read_csv("fetch.boxes", boxes)
    header = rows[0] if rows else []
    if header != BOXES_HEADER:
        accepted = ",".join(BOXES_HEADER)
        raise ValueError(f"fetch.boxes: {boxes}: its first line must be {accepted}, found {','.join(header)}")
    _write_csv(directory / "boxes.csv", rows)


def copy_sources(sources: str | None, directory: Path) -> None:
    """Copy the table of sources to `directory/sources.csv`, if there is one, with the header it may lack."""
    if sources is None:
        return
    rows = _read_csv("fetch.sources", sources)
    if rows and rows[0] == SOURCES_HEADER:
        rows = rows[1:]
    for row in rows:
        if len(row) != 2 or "/" not in row[0]:
            raise ValueError(f"fetch.sources: {sources}: every line must be class/video,source; found {','.join(row)}")
    _write_csv(directory / "sources.csv", [SOURCES_HEADER, *rows])


def _read_csv(key: str, name: str) -> list[list[str]]:
    path = Path(name).expanduser()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise ValueError(f"{key}: {path}: no such file: check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{key}: {path}: cannot be read as a CSV file in UTF-8 ({error})") from None


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
