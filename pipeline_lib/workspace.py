"""The workspace: one folder that holds all that runs write, used by one run at a time."""

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
    """Hold the workspace for one run; the system lets go of it when the process ends, however it ends.

    Raises:
        WorkspaceBusyError: naming the process that holds it.
    """
    _create(workspace)
    with (workspace / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkspaceBusyError(
                f"{workspace}: another run (process {file.read().strip() or 'unknown'}) is using this workspace; "
                "wait for it, or choose another with --set workspace=FOLDER"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def workspace_id(workspace: Path) -> str:
    """Return the workspace's own name, made up once, by which its runs are recognised in Prefect and MLflow."""
    path = workspace / "workspace.json"
    if not path.is_file():
        _create(workspace)
        path.write_text(json.dumps({"id": uuid.uuid4().hex[:12]}), encoding="utf-8")
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])


def _create(workspace: Path) -> None:
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workspace: {workspace} cannot be made a folder ({error.strerror}); choose another") from None
