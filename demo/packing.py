"""The rendered collection as a user would have it: archives packed as HMDB-51's are, and two tables."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.collection import CollectionParams, render_collection
from demo.rar import pack_collection, write_rar
from pipeline_lib.errors import UserError

VIDEOS, SPLITS = "videos.rar", "splits.rar"
TABLES = ("groups.csv", "boxes.csv")
DESCRIPTION = "collection.json"
VERSION = 2
"""Raise it when equal parameters give other bytes: folders that were rendered before are then rendered again."""


def make_collection(folder: Path, params: CollectionParams) -> bool:
    """Render the collection into `folder`, unless it is there already, and return whether it was rendered.

    Writes `videos.rar` (one RAR a class), `splits.rar`, `groups.csv`, `boxes.csv`, and `collection.json`, which says what
    they were rendered from. They appear together, when all are whole. Another rendered collection is replaced.

    Raises:
        UserError: there is something else at `folder`.
    """
    if _read(folder / DESCRIPTION) == _describe(folder, params):
        return False
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        draft = _render_packed(Path(scratch), params)
        if folder.exists():
            folder.replace(Path(scratch) / "old")
        draft.replace(folder)
    return True


def _render_packed(scratch: Path, params: CollectionParams) -> Path:
    """Render the collection into `scratch` and return the folder there that holds it packed."""
    rendered, packed = scratch / "rendered", scratch / "packed"
    render_collection(rendered, params)
    packed.mkdir()
    pack_collection(rendered, packed / VIDEOS)
    split_files = sorted((rendered / "splits").iterdir())
    write_rar(packed / SPLITS, [(f"testTrainMulti_7030_splits/{path.name}", path) for path in split_files])
    for table in TABLES:
        shutil.move(rendered / table, packed / table)
    (packed / DESCRIPTION).write_text(json.dumps(_describe(packed, params), indent=2), encoding="utf-8")
    return packed


def _describe(folder: Path, params: CollectionParams) -> dict[str, Any]:
    """Return what the collection in `folder` is rendered from, and the size of each of its files."""
    files = [path for name in (VIDEOS, SPLITS, *TABLES) if (path := folder / name).is_file()]
    return {"version": VERSION, "params": asdict(params), "size_bytes": {path.name: path.stat().st_size for path in files}}


def _read(description: Path) -> Any:
    try:
        return json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / DESCRIPTION).is_file()):
        raise UserError(f"{folder}: holds something other than a rendered collection; choose another folder, or remove it")
