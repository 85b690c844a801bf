"""The workspace: the folder that runs write to, used by one run at a time."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline_lib.errors import UserError


class WorkspaceBusyError(UserError):
    """Another run holds the workspace."""


@contextmanager
def hold_workspace(workspace: Path) -> Iterator[None]:
    """Hold the workspace's lock in the block; the system releases it when the process ends.

    Raises:
        WorkspaceBusyError: another process holds the workspace; names it.
    """
    _create(workspace)
    with (workspace / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkspaceBusyError(
                f"{workspace}: another run (process {file.read().strip() or 'unknown'}) is using this workspace; "
                "wait for it, or choose another with --set workspace=FOLDER, or with a bucket another --set cache=FOLDER"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_held(workspace: Path) -> bool:
    """Return whether a run holds the workspace."""
    try:
        with (workspace / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def workspace_id(workspace: Path) -> str:
    """Return the id of the workspace in Prefect and MLflow, creating one if needed; a copy gets a new id."""
    _create(workspace)
    values = {"id": known_id(workspace) or uuid.uuid4().hex[:12], "inode": workspace.stat().st_ino}
    if _read_values(workspace) != values:
        temporary = workspace / f".workspace.{os.getpid()}.json"
        temporary.write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(_values_file(workspace))
    return str(values["id"])


def known_id(workspace: Path) -> str | None:
    """Return the id of the workspace, or None if it has none or is a copy.

    A copied folder is recognised by its inode, which moving does not change.
    """
    values = _read_values(workspace)
    if "id" not in values or values.get("inode", inode := workspace.stat().st_ino) != inode:
        return None
    return str(values["id"])


def _read_values(workspace: Path) -> dict[str, str | int]:
    try:
        values = json.loads(_values_file(workspace).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _values_file(workspace: Path) -> Path:
    return workspace / "workspace.json"


def _create(workspace: Path) -> None:
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"workspace: {workspace} cannot be created as a folder ({error.strerror}); choose another folder or cache"
        ) from None
