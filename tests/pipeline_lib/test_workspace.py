from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline_lib.workspace import WorkspaceBusyError, hold_workspace, workspace_id

HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from pipeline_lib.workspace import hold_workspace
with hold_workspace(Path(sys.argv[1])):
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_second_run_is_refused_and_told_who_holds_the_workspace(tmp_path):
    with (
        hold_workspace(tmp_path),
        pytest.raises(WorkspaceBusyError, match=rf"process {os.getpid()}.*--set workspace"),
        hold_workspace(tmp_path),
    ):
        pass
    with hold_workspace(tmp_path):
        pass


def test_a_killed_run_lets_go(tmp_path):
    process = subprocess.run([sys.executable, "-c", HOLD_AND_DIE, tmp_path], stdout=subprocess.PIPE, check=False)
    assert process.stdout == b"held\n"
    with hold_workspace(tmp_path):
        pass


def test_a_workspace_keeps_its_name(tmp_path):
    assert workspace_id(tmp_path) == workspace_id(tmp_path)
    assert workspace_id(tmp_path) != workspace_id(tmp_path / "other")


def test_a_workspace_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workspace: .*file.*choose another"), hold_workspace(tmp_path / "file" / "inside"):
        pass
