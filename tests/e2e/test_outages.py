"""A tracking server that dies or stalls while a run is under way costs a warning, never the run."""

from __future__ import annotations

import logging

import pytest

from tests.e2e.tracking_server import TrackingServer


@pytest.fixture
def server():
    with TrackingServer() as server:
        yield server


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "tasks.background"]


def test_a_server_that_answers_gets_everything(copy_of_finished, server, caplog):
    summary = copy_of_finished().run(f"tracking.uri={server.uri}")
    assert warnings(caplog) == []
    assert set(server.runs.values()) == {"FINISHED"}
    assert len(server.runs) == 4
    assert {row["mlflow_run_id"] for row in summary["models"].values()} < set(server.runs)
    paths = {path for path, _ in server.requests}
    for run_id in (row["mlflow_run_id"] for row in summary["models"].values()):
        assert any(f"{run_id}/artifacts/checkpoint/checkpoint.safetensors" in path for path in paths)


@pytest.mark.parametrize("stalls", [False, True], ids=["dies", "stalls"])
@pytest.mark.parametrize("answers", [8, 25], ids=["before the models' runs are open", "after"])
def test_one_that_goes_away_costs_a_warning(copy_of_finished, server, caplog, monkeypatch, stalls, answers):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.answers_left = answers
    if stalls:
        server.is_silent.set()
    summary = copy_of_finished().run(f"tracking.uri={server.uri}", "train.models=[mean_pool]", refresh=("train",))
    assert summary["stages"]["train"]["cache"] == "miss"
    assert summary["report"]
    told = warnings(caplog)
    assert len(told) <= 2  # one when it is noticed, if that is before the end, and one at the end
    assert all(line.startswith(f"MLflow at {server.uri} does not answer; ") for line in told)
    assert "records of this run were not written: " in told[-1]


def test_system_metrics_do_not_fail_the_run_either(copy_of_finished, server, caplog):
    server.answers_left = 8
    logging.getLogger("mlflow").propagate = True
    assert copy_of_finished().run(f"tracking.uri={server.uri}", "tracking.system_metrics=true", until="chunk")
