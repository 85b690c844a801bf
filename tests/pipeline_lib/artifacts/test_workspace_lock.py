from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from pipeline_lib.artifacts.workspace_lock import WorkspaceBusyError, hold_workspace, is_held, known_id, workspace_id

HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from pipeline_lib.artifacts.workspace_lock import hold_workspace
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


def test_a_moved_workspace_keeps_its_name_and_a_copy_gets_its_own(tmp_path):
    """Two copies that share a tracking server would close each other's runs."""
    name = workspace_id(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert known_id(tmp_path / "copy") is None
    assert workspace_id(tmp_path / "copy") == workspace_id(tmp_path / "copy") != name
    (tmp_path / "first").rename(tmp_path / "moved")
    assert known_id(tmp_path / "moved") == workspace_id(tmp_path / "moved") == name


def test_a_name_of_before_places_were_remembered_is_kept(tmp_path):
    (tmp_path / "workspace.json").write_text('{"id": "0123456789ab"}')
    assert workspace_id(tmp_path) == "0123456789ab"
    assert json.loads((tmp_path / "workspace.json").read_text())["inode"] == tmp_path.stat().st_ino


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_name_is_drawn_again(tmp_path, text):
    (tmp_path / "workspace.json").write_text(text)
    assert workspace_id(tmp_path) == workspace_id(tmp_path)


def test_whether_a_run_holds_the_workspace_is_told_without_changing_it(tmp_path):
    assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with hold_workspace(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_a_workspace_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workspace: .*file.*choose another"), hold_workspace(tmp_path / "file" / "inside"):
        pass
