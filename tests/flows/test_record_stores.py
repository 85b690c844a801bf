"""What `har up` tells its servers, and what it refuses before it starts one."""

from __future__ import annotations

import os
import socket

import psutil
import pytest

from flows import record_stores
from flows.record_stores import open_stores
from flows.service_state import Service, remember_services
from flows.services import Wanted, _plan, start_services
from pipeline_lib.errors import UserError
from tasks.mlflow import tracking
from tests.servers import PASSWORD, QUOTED

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in (tracking.ENVIRONMENT_VARIABLE, "HAR_DATABASE"):
        monkeypatch.delenv(name, raising=False)


def plans(workspace, stores):
    found = _plan(workspace, "127.0.0.1", "http://127.0.0.1:4200", "http://127.0.0.1:5000", stores)
    return {plan.name: plan for plan in found}


def test_passwords_are_in_the_environment_of_the_process_that_needs_them_and_on_no_command_line(tmp_path, postgresql):
    stores = open_stores(tmp_path, postgresql.address("up"), None)
    started = plans(tmp_path, stores)
    place = f"team:{QUOTED}@127.0.0.1:{postgresql.port}"
    assert started["mlflow"].environment["MLFLOW_BACKEND_STORE_URI"] == f"postgresql+psycopg://{place}/up_mlflow"
    connection = started["prefect"].environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert connection == f"postgresql+asyncpg://{place}/up_prefect"
    assert started["deployments"].environment["HAR_DATABASE"] == postgresql.address("up")
    assert started["deployments"].environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    shown = f"{stores!r} {[plan.command for plan in started.values()]}"
    assert not any(secret in shown for secret in (PASSWORD, QUOTED))
    assert not any("PREFECT_SERVER_DATABASE_CONNECTION_URL" in started[name].environment for name in ("mlflow", "deployments"))


def test_artifacts_of_a_team_go_through_the_server(tmp_path, postgresql):
    environment = open_stores(tmp_path, postgresql.address("up"), None).mlflow
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == (tmp_path / "mlflow" / "artifacts").as_uri()
    assert "MLFLOW_DEFAULT_ARTIFACT_ROOT" not in environment


def test_a_tracking_uri_with_a_password_is_not_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv(tracking.ENVIRONMENT_VARIABLE, "postgresql://me:s3cret@lab/records")
    monkeypatch.setattr(tracking, "init_tracking", lambda *_: None)
    mlflow = plans(tmp_path, open_stores(tmp_path, None, None))["mlflow"]
    assert "s3cret" not in str(mlflow.command)
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:s3cret@lab/records"


def test_a_server_that_is_named_already_is_not_started_again(tmp_path, monkeypatch):
    monkeypatch.setenv(tracking.ENVIRONMENT_VARIABLE, "http://me:s3cret@lab:5000")
    with pytest.raises(UserError, match=r"^har up: MLFLOW_TRACKING_URI = http://\*\*\*@lab:5000 is a server already; unset it"):
        open_stores(tmp_path, None, None)


def test_a_workspace_with_its_records_elsewhere_is_not_given_new_ones(tmp_path):
    tracking.set_workspace_server(tmp_path, "http://127.0.0.1:5000")
    with pytest.raises(UserError, match=r"has its records in a database or object store; give --database"):
        open_stores(tmp_path, None, None)


def test_only_an_object_store_is_accepted_for_artifacts(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^har up --artifacts /data: give s3://bucket/prefix$"):
        open_stores(tmp_path, None, "/data")
    monkeypatch.setattr(record_stores, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"boto3 is not installed; pip install 'har\[s3\]'"):
        open_stores(tmp_path, None, "s3://lab/mlflow")


def test_an_object_store_that_refuses_is_one_line(tmp_path, object_store, monkeypatch):
    for name, value in (object_store.environment | {"AWS_SECRET_ACCESS_KEY": "wr0ng"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^har up --artifacts s3://lab/mlflow: the object store cannot be used: ") as error:
        open_stores(tmp_path, None, "s3://lab/mlflow")
    assert len(str(error.value).splitlines()) == 1
    assert "wr0ng" not in str(error.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(tmp_path, host):
    with pytest.raises(UserError, match=rf"^har up: prefect cannot listen on {host}:4200 \(.*\); --host takes"):
        start_services(tmp_path, Wanted(host=host), print)


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^har up: port {port}, wanted for prefect, is taken"):
            start_services(tmp_path, Wanted(prefect_port=port), print)


def test_the_wildcard_is_reached_by_loopback():
    assert Wanted(host="0.0.0.0").url(5000) == Wanted().url(5000) == "http://127.0.0.1:5000"


def test_options_that_come_too_late_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.services._answers", lambda address: True)
    created = psutil.Process().create_time()
    names = ("prefect", "mlflow", "deployments")
    remember_services(tmp_path, {name: Service(name, os.getpid(), created, "http://127.0.0.1:1", "log") for name in names})
    said: list[str] = []
    start_services(tmp_path, Wanted(database="postgresql://team@db.lab/har"), said.append)
    assert said[0].startswith("already running, with the options of their start: prefect, mlflow, deployments; ")
