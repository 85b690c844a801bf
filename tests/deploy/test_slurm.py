"""The batch script for SLURM, and what it does before Ray starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.checking import ROOT, changed

SCRIPTS = [ROOT / "deploy" / "slurm" / "har.sbatch", ROOT / "deploy" / "without_docker.sh"]


def bash(*arguments, **environment):
    return subprocess.run(
        ["bash", *map(str, arguments)], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_can_read_it(script):
    assert bash("-n", script).returncode == 0


def test_a_fault_is_found(tmp_path):
    assert bash("-n", changed(SCRIPTS[0], r"\bdone\b", "", tmp_path)).returncode != 0


@pytest.mark.parametrize("address", ["127.0.1.1", ""])
def test_a_head_that_other_nodes_cannot_reach_is_refused(tmp_path, address):
    resolver = tmp_path / "bin" / "getent"
    resolver.parent.mkdir()
    resolver.write_text(f"#!/bin/sh\necho '{address} STREAM node1'\n")
    resolver.chmod(0o755)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    path = os.pathsep.join([str(resolver.parent), os.environ["PATH"]])
    result = bash(SCRIPTS[0], SLURM_JOB_ID="77", SLURM_NNODES="2", VENV=str(tmp_path / "venv"), PATH=path)
    assert result.returncode == 1
    assert "HEAD_IP" in result.stderr


def test_another_call_of_the_build_script_is_refused_with_its_usage():
    result = bash(SCRIPTS[1], "built", Path("/nowhere"))
    assert result.returncode == 2
    assert "without_docker.sh build FOLDER" in result.stderr
