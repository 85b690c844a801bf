"""`har up --database --artifacts` on a real PostgreSQL and object store, and a machine that has only the server's address."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from flows.service_state import running_services
from pipeline_lib.params import TrackingParams
from tasks.mlflow import tracking
from tests.conftest import PREFECT
from tests.e2e.conftest import Pipeline
from tests.e2e.logging_flow import METRICS, TASKS
from tests.servers import PASSWORD, QUOTED, ObjectStore, PostgresServer, free_port

pytestmark = [pytest.mark.slow, pytest.mark.integration]

PROJECT = Path(__file__).parents[2]
FLOWS = 2


@dataclass
class Team:
    """What `har up` started, and where its records are."""

    workspace: Path
    postgresql: PostgresServer
    object_store: ObjectStore
    prefect_url: str
    mlflow_url: str

    def elsewhere(self) -> dict[str, str]:
        """Return the environment of a machine that has the MLflow server's address and no credentials."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HAR_", "PREFECT_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # as in an activated environment
        return kept | {"MLFLOW_TRACKING_URI": self.mlflow_url, "PYTHONPATH": str(PROJECT), "PATH": path}

    def log(self, name: str, batches: int) -> subprocess.Popen[str]:
        """Start a flow that logs."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.logging_flow", name, str(batches)], cwd=PROJECT, text=True,
            env=self.elsewhere() | {"PREFECT_API_URL": f"{self.prefect_url}/api", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def num_metrics(self, name: str) -> int:
        """Return how many metrics PostgreSQL has of the runs whose names begin with `name`."""
        query = f"select count(*) from metrics join runs using (run_uuid) where runs.name like '{name} %'"
        return self.postgresql.execute("team_mlflow", query)[0][0]

    def server_logs(self) -> str:
        return "".join((self.workspace / "logs" / f"{name}.log").read_text() for name in ("mlflow", "prefect"))


def har(*arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def team(tmp_path_factory, postgresql, object_store):
    workspace = tmp_path_factory.mktemp("team") / "workspace"
    workspace.mkdir()
    prefect_port, mlflow_port = free_port(), free_port()
    env = os.environ | object_store.environment | {"HAR_DATABASE": postgresql.address("team")}
    options = ("--workspace", workspace, "--prefect-port", prefect_port, "--mlflow-port", mlflow_port)
    up = har("up", *options, "--artifacts", "s3://lab/mlflow", env=env)
    try:
        assert up.returncode == 0, up.stderr
        urls = [f"http://127.0.0.1:{port}" for port in (prefect_port, mlflow_port)]
        tracking.init_tracking(TrackingParams(uri=urls[1]), workspace)  # makes the experiment
        yield Team(workspace, postgresql, object_store, *urls)
    finally:
        har("down", "--workspace", workspace, env=env)


@pytest.fixture(scope="module")
def finished_there(team, tiny_collection):
    """Run the pipeline in the workspace, whose records are then the team's."""
    params = Pipeline(team.workspace.parent, tiny_collection).write_params()
    env = {name: value for name, value in team.elsewhere().items() if name != "MLFLOW_TRACKING_URI"}
    run = har("run", params, "--set", "train.models=[alstm]", env=env)
    assert run.returncode == 0, run.stderr
    return tiny_collection


def test_no_password_is_on_a_command_line_or_in_a_file(team):
    services = [psutil.Process(service.pid) for service in running_services(team.workspace).values()]
    processes = [process for service in services for process in (service, *service.children(recursive=True))]
    lines = " ".join(word for process in processes for word in process.cmdline())
    assert "mlflow" in lines
    secrets = (PASSWORD, QUOTED, ObjectStore.SECRET)
    assert not any(secret in lines for secret in secrets)
    files = [path for folder in (team.workspace, PREFECT) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


def test_two_flows_that_log_at_once_lose_nothing(team, record_property):
    batches = 10_000 // (FLOWS * TASKS * METRICS)
    begun = time.monotonic()
    flows = [team.log(f"together {number}", batches) for number in range(FLOWS)]
    outputs = [flow.communicate(timeout=300)[0] for flow in flows]
    record_property("seconds", round(time.monotonic() - begun, 1))
    assert [flow.returncode for flow in flows] == [0] * FLOWS, outputs
    assert team.num_metrics("together") == 10_000
    states = team.postgresql.execute("team_prefect", "select state_type from flow_run join flow on flow.id = flow_id "
                                     "where flow.name = 'log-much'")  # fmt: skip
    assert states == [("COMPLETED",)] * FLOWS
    for text in (*outputs, team.server_logs()):
        assert not any(word in text for word in ("database is locked", "Traceback", "was not written"))


def test_what_is_logged_while_the_database_restarts_is_not_lost(team):
    flow = team.log("restart", 40)
    deadline = time.monotonic() + 120
    while not team.num_metrics("restart"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    team.postgresql.kill()
    time.sleep(5)
    team.postgresql.start()
    output = flow.communicate(timeout=300)[0]
    assert flow.returncode == 0, output
    assert team.num_metrics("restart") == TASKS * 40 * METRICS
    assert "does not answer" in output


def test_artifacts_are_in_the_object_store_alone(team, finished_there):
    keys = team.object_store.keys()
    assert any(key.startswith("mlflow/") and "/artifacts/" in key for key in keys)
    assert not (team.workspace / "mlflow" / "artifacts").exists()
    assert not (team.workspace / "mlflow" / "mlflow.db").exists()


def test_the_servers_address_is_enough_to_predict(team, finished_there, tmp_path):
    video = next((finished_there / "videos" / "wave").iterdir())
    output = tmp_path / "results"
    predicted = har("predict", video, "--workspace", tmp_path / "none", "--output", output, env=team.elsewhere())
    assert predicted.returncode == 0, predicted.stderr
    row = json.loads((output / "predictions.json").read_text())["videos"][0]
    assert row["label"] in ("wave", "jump")


def test_the_servers_address_is_enough_to_promote_and_serve(team, finished_there, tmp_path):
    assert har("promote", "--workspace", tmp_path / "none", env=team.elsewhere()).returncode == 0
    assert MlflowClient(team.mlflow_url).get_model_version_by_alias("har", "champion").version == "1"
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/har@champion", "--env-manager", "local"]
    server = start([*command, "--port", str(port)], log, cwd=tmp_path, env=team.elsewhere())
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, log)
        video = next((finished_there / "videos" / "jump").iterdir()).read_bytes()
        body = {"dataframe_records": [{"video": base64.b64encode(video).decode()}]}
        assert post(f"http://127.0.0.1:{port}/invocations", body)["predictions"][0]["label"] in ("wave", "jump")
    finally:
        kill(server)


def test_the_servers_address_is_enough_for_the_app(team, finished_there, tmp_path):
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "flows.cli", "app", "--workspace", str(tmp_path / "none"), "--port", str(port)]
    app = start(command, log, cwd=PROJECT, env=team.elsewhere())
    try:
        wait_for(f"http://127.0.0.1:{port}/", app, log)
    finally:
        kill(app)


def start(command: list[str], log: Path, cwd: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=file, stderr=file, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def post(url: str, body: object) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)
