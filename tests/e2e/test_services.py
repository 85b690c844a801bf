"""`har up`, the deployments, and `har down`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from flows.deployments import deployment_names, deployment_parameters
from flows.service_state import running_services
from flows.services import start_temporary_prefect, stop_temporary_prefect, wait_for_prefect
from pipeline_lib.params import STAGES
from tests.e2e.conftest import Pipeline
from tests.listening import beyond_loopback, listening
from tests.servers import free_port

PROJECT = Path(__file__).parents[2]


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=PROJECT, env=os.environ | environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """Start the services in a workspace of their own; yields it and the Prefect address."""
    workspace = tmp_path_factory.mktemp("services") / "workspace"
    workspace.mkdir()
    prefect_port, mlflow_port = free_port(), free_port()
    up = command(
        "flows.cli", "up", "--workspace", workspace, "--prefect-port", prefect_port, "--mlflow-port", mlflow_port,
        PREFECT_RUNNER_POLL_FREQUENCY="1",
    )  # fmt: skip
    assert up.returncode == 0, up.stderr
    try:
        assert f"http://127.0.0.1:{prefect_port}" in up.stdout
        assert f"http://127.0.0.1:{mlflow_port}" in up.stdout
        yield workspace, f"http://127.0.0.1:{prefect_port}/api"
    finally:
        command("flows.cli", "down", "--workspace", workspace)


def test_full_completes_as_a_deployment(services, tiny_collection):
    workspace, address = services
    params_file = Pipeline(workspace.parent, tiny_collection).write_params()
    full = command(
        "prefect", "deployment", "run", "har/full", "-p", f"params={params_file}", "--watch", PREFECT_API_URL=address
    )
    assert "finished successfully" in full.stdout, full.stdout + full.stderr


@pytest.mark.slow
def test_a_stage_completes_as_a_deployment(services, tiny_collection):
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    workspace, address = services
    params_file = Pipeline(workspace.parent, tiny_collection).write_params()
    with temporary_settings({PREFECT_API_URL: address}):
        train = run_deployment("har/train", parameters={"params": str(params_file)}, poll_interval=1, timeout=200)
    assert train.state.name == "Completed"


def test_no_server_is_reached_from_other_machines(services):
    workspace, _ = services
    assert [beyond_loopback(service.pid) for service in running_services(workspace).values()] == [[], [], []]


@pytest.mark.slow
def test_the_temporary_server_of_a_run_is_not_either(tmp_path):
    address = start_temporary_prefect(tmp_path)
    try:
        wait_for_prefect(address)
        assert beyond_loopback(os.getpid()) == []
        assert listening(os.getpid()) >= {f"127.0.0.1:{urlsplit(address).port}"}
    finally:
        stop_temporary_prefect()


def test_up_again_says_where_they_are_and_starts_nothing(services):
    workspace, _ = services
    before = {name: service.pid for name, service in running_services(workspace).items()}
    again = command("flows.cli", "up", "--workspace", workspace)
    assert again.returncode == 0, again.stderr
    assert {name: service.pid for name, service in running_services(workspace).items()} == before
    assert set(before) == {"prefect", "mlflow", "deployments"}


def test_down_stops_them_and_nothing_else(services):
    workspace, _ = services
    mine = running_services(workspace)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    try:
        down = command("flows.cli", "down", "--workspace", workspace)
        assert down.returncode == 0, down.stderr
        assert all(service.process() is None for service in mine.values())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert "no servers of this workspace are running" in command("flows.cli", "down", "--workspace", workspace).stdout


def test_down_leaves_a_process_alone_that_took_over_the_number(tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    row = {"name": "prefect", "pid": bystander.pid, "created": 1.0, "address": "http://127.0.0.1:1", "log": "log"}
    (tmp_path / "services.json").write_text(json.dumps([row]))
    try:
        assert command("flows.cli", "down", "--workspace", tmp_path).returncode == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_work_pool_offers_the_same_deployments_as_har_up():
    rows = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    assert {row["name"]: row.get("parameters", {}) for row in rows} == {
        name: deployment_parameters(name) for name in deployment_names()
    }
    assert {row["entrypoint"] for row in rows} == {"flows/har.py:har"}


def test_every_stage_has_a_deployment():
    assert {"full", "demo", *STAGES} - {"report"} == set(deployment_names())
