"""MLflow's database: whole or not there at all, whenever a run is killed; and which store a workspace has."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.errors import UserError
from pipeline_lib.params import TrackingParams
from pipeline_lib.sweep.trials import Trial
from tasks.background import Background
from tasks.mlflow import tracking
from tests.e2e.tracking_server import TrackingServer


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking.ENVIRONMENT_VARIABLE, raising=False)


def test_a_run_killed_while_the_database_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(tracking.os, "link", die)
        with pytest.raises(KeyboardInterrupt):
            tracking.init_tracking(TrackingParams(), tmp_path)
    assert list((tmp_path / "mlflow").iterdir()) == []
    uri, experiment_id = tracking.init_tracking(TrackingParams(), tmp_path)
    assert tracking.init_tracking(TrackingParams(), tmp_path) == (uri, experiment_id)
    assert [path.name for path in (tmp_path / "mlflow").iterdir()] == ["mlflow.db"]


def test_a_database_that_is_there_is_kept(tmp_path: Path) -> None:
    tracking.init_tracking(TrackingParams(experiment="first"), tmp_path)
    tracking.init_tracking(TrackingParams(experiment="second"), tmp_path)
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as database:
        names = {name for (name,) in database.execute("select name from experiments")}
    assert {"first", "second"} <= names


def test_a_server_behind_a_password_is_asked_without_it_and_shown_without_it(tmp_path: Path) -> None:
    with TrackingServer() as server:
        uri = server.uri.replace("//", "//me:secret@")
        assert tracking.init_tracking(TrackingParams(uri=uri), tmp_path)[0] == uri
        assert server.requests[0][0] == "/health"
        server.answers_left = 1
        with pytest.raises(ValueError, match=r"MLflow at http://\*\*\*@127") as error:
            tracking.init_tracking(TrackingParams(uri=uri), tmp_path)
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match=r"no MLflow server answers at http://\*\*\*@127") as error:
        tracking.init_tracking(TrackingParams(uri=uri), tmp_path)
    assert "secret" not in str(error.value)


def test_a_workspace_with_a_server_uses_it_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.tracking_uri(TrackingParams(), tmp_path) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    tracking.set_workspace_server(tmp_path, "http://127.0.0.1:1")
    assert tracking.tracking_uri(TrackingParams(), tmp_path) == "http://127.0.0.1:1"
    assert tracking.tracking_uri(TrackingParams(uri="http://lab"), tmp_path) == "http://lab"
    with pytest.raises(UserError, match=r"no MLflow server answers at http://127.0.0.1:1 .*; `har up` starts it$"):
        tracking.open_tracking(tmp_path)
    monkeypatch.setenv(tracking.ENVIRONMENT_VARIABLE, "http://elsewhere")
    assert tracking.tracking_uri(TrackingParams(), tmp_path) == "http://elsewhere"


@pytest.mark.parametrize(("errors", "calls", "is_lost"), [(0, 1, False), (1, 2, False), (9, 2, True)])
def test_a_record_is_sent_again_after_one_internal_error(errors, calls, is_lost, monkeypatch, caplog) -> None:
    from mlflow.exceptions import MlflowException

    def log(run_id: str) -> None:
        told.append(run_id)
        if len(told) <= errors:
            raise MlflowException("API request to http://lab failed: Max retries exceeded (too many 500 error responses)")

    monkeypatch.setattr(tracking, "AGAIN_SECONDS", 0.0)
    told: list[str] = []
    background = Background("MLflow", tracking.is_outage)
    tracking.TrackedRun(background, "run").log(log)
    background.close()
    assert told == ["run"] * calls
    assert ("was not written" in caplog.text) is is_lost


@pytest.mark.parametrize("function", ["create_run", "log_batch", "set_terminated"])
def test_a_trial_whose_records_are_broken_off_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    from mlflow import MlflowClient

    _, experiment_id = tracking.init_tracking(TrackingParams(), tmp_path)
    record, failures = getattr(MlflowClient, function), [ConnectionError("the server went away after it had written this")]

    def break_off(client: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        written = record(client, *args, **kwargs)
        if failures:
            raise failures.pop()
        return written

    parent = MlflowClient().create_run(experiment_id).info.run_id
    monkeypatch.setattr(MlflowClient, function, break_off)
    history = ({"epoch": 1, "seconds": 0.5, "val_clip_accuracy": 0.25},)
    trial = Trial(3, "complete", {"units": 8}, 0.25, history, is_default=False, reason=None)
    background = Background("MLflow", tracking.is_outage, pause_seconds=0.01)
    tracking.log_trial(tracking.TrackedRun(background, parent), trial)
    while not (runs := MlflowClient().search_runs([experiment_id], "tags.trial = '3' and attributes.status = 'FINISHED'")):
        time.sleep(0.05)
    background.close()
    assert not failures
    assert len(MlflowClient().search_runs([experiment_id], "tags.trial = '3'")) == 1
    assert (runs[0].data.params, runs[0].data.metrics["sweep/val_clip_accuracy"]) == ({"units": "8"}, 0.25)


def test_where_there_is_no_git_nothing_is_said_about_it(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from pipeline_lib.params import TrackingParams; from tasks.mlflow import tracking; "
        f"tracking.init_tracking(TrackingParams(), Path({str(tmp_path)!r})); import git"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GIT_PYTHON_REFRESH"} | {"PATH": str(tmp_path)}
    command, project = [sys.executable, "-c", code], Path(__file__).parents[2]
    result = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, "git" in result.stderr) == (0, False), result.stderr
