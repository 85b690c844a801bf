"""The scripts: the batch script for SLURM, what it does before Ray starts, and the build without Docker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.checking import ROOT, changed

SCRIPTS = [ROOT / "deploy" / "slurm" / "har.sbatch", ROOT / "deploy" / "without_docker.sh"]


def bash(*arguments, folder=ROOT, **environment):
    return subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_can_read_it(script):
    assert bash("-n", script).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (Debian: apt install shellcheck)")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_warns_of_nothing(script):
    result = subprocess.run(["shellcheck", "--severity=warning", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_a_fault_is_found(tmp_path):
    assert bash("-n", changed(SCRIPTS[0], r"\bdone\b", "", tmp_path)).returncode != 0


def batch(folder, **commands):
    """Run the batch script with stand-ins for some commands."""
    for name, text in commands.items():
        stand_in = folder / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f"#!/bin/sh\n{text}\n")
        stand_in.chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    variables = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "1", "SLURMD_NODENAME": "node1"}
    return bash(SCRIPTS[0], folder=folder, VENV=str(folder), **variables)


@pytest.mark.parametrize("answer", ["echo '127.0.1.1 STREAM node1'", "exit 2"])
def test_a_head_that_other_nodes_cannot_reach_is_refused(tmp_path, answer):
    result = batch(tmp_path, getent=answer)
    assert result.returncode == 1
    assert "HEAD_IP" in result.stderr


def test_nodes_that_do_not_start_end_the_job_at_once(tmp_path):
    result = batch(tmp_path, getent="echo '192.0.2.7 STREAM node1'", ray="exit 1", srun="exit 1")
    assert result.returncode == 1
    assert "not all 2 nodes joined" in result.stderr


def test_another_call_of_the_build_script_is_refused_with_its_usage():
    result = bash(SCRIPTS[1], "built", Path("/nowhere"))
    assert result.returncode == 2
    assert "without_docker.sh build FOLDER" in result.stderr
