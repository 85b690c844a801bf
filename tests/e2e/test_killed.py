"""A run killed at any moment goes on where it was, and its records do not stay `Running`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline_lib.params import STAGES

PROJECT = Path(__file__).parents[2]
MADE = [stage for stage in STAGES if stage not in ("finetune", "sweep")]


def start(pipeline, *settings):
    options = [option for setting in settings for option in ("--set", setting)]
    command = [sys.executable, "-m", "flows.cli", "run", str(pipeline.write_params()), *options]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_when(pipeline, condition, *settings):
    process = start(pipeline, *settings)
    try:
        wait_for(condition, process)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    others = [child for child in children if not is_daemon_of_ray(child)]
    assert not psutil.wait_procs(others, timeout=10)[1], "processes outlive the run that started them"


def is_daemon_of_ray(process):
    """Two of Ray's daemons, which do no work, stay for a minute after a SIGKILL (docs/decisions/2026-11-29-engine.md)."""
    try:
        return "Agent" in " ".join(process.cmdline())
    except psutil.Error:
        return False


MANY_EPOCHS = "train.epochs=40", "train.patience=40", "train.models=[alstm]"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["alone", "side by side"])
def test_training_goes_on_from_its_last_epoch_with_the_result_of_an_unbroken_run(copy_of_finished, finished, seeds):
    pipeline = copy_of_finished()
    states = pipeline.workspace / "partial" / "train"
    settings = *MANY_EPOCHS, f"train.seeds={list(seeds)}"
    kill_when(pipeline, lambda: any(states.glob("*/state.pt")), *settings)
    killed = pipeline.run(*settings, "train.device=cpu", until="evaluate")
    unbroken = finished[0].run(*settings, until="evaluate")
    first, second = (checkpoints(summary) for summary in (killed, unbroken))
    assert len(first) == len(seeds)
    assert first == second


def checkpoints(summary):
    row = summary["models"]["alstm"]
    return [Path(run["checkpoint"]).read_bytes() for run in row.get("training_runs", [row])]


def test_records_of_a_killed_run_are_closed_by_the_next(pipeline, prefect_server):
    from mlflow import MlflowClient
    from prefect.client.orchestration import get_client

    kill_when(pipeline, lambda: any((pipeline.workspace / "artifacts" / "subsample").glob("*/manifest.json")))
    client = MlflowClient(f"sqlite:///{pipeline.workspace / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("har").experiment_id
    dead = client.search_runs([experiment])
    assert {run.info.status for run in dead} == {"RUNNING"}
    summary = pipeline.run(until="chunk")
    assert {client.get_run(run.info.run_id).info.status for run in dead} == {"KILLED"}
    assert client.get_run(summary["mlflow"]["parent_run_id"]).info.status == "FINISHED"
    with get_client(sync_client=True) as prefect:
        assert prefect.read_flow_run(dead[0].data.tags["prefect.flow_run_id"]).state.type.value == "CRASHED"


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["mlflow", *(f"artifacts/{stage}/*" for stage in MADE)])
def test_killed_in_any_stage_the_next_run_finishes(pipeline, seen):
    """Killed as soon as the stage leaves anything, whole or under way."""
    kill_when(pipeline, lambda: any(pipeline.workspace.glob(seen)))
    assert pipeline.run()["report"]
    assert not list((pipeline.workspace / "artifacts").glob("*/.*"))
