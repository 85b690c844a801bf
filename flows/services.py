"""`har up` and `har down`: Prefect server, MLflow server and deployments, on the loopback interface by default."""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.deployments import deployment_names
from flows.record_stores import Stores, open_stores, share
from flows.servers import EVERYWHERE, HOST, MLFLOW_PORT, PREFECT_PORT
from flows.service_state import Service, remember_services, running_services, state_file
from pipeline_lib.errors import UserError
from tasks.mlflow.tracking import ENVIRONMENT_VARIABLE, QUIET

NUM_SERVICES = 3
START_SECONDS = 180.0
STOP_SECONDS = 15.0
_started: list[subprocess.Popen[bytes]] = []
"""References that avoid Python's warning about processes that outlive their objects."""

_temporary: list[Service] = []

PR_SET_PDEATHSIG = 1
"""From Linux's prctl.h."""


@dataclass(frozen=True)
class Wanted:
    """The options of `har up`."""

    prefect_port: int = PREFECT_PORT
    mlflow_port: int = MLFLOW_PORT
    host: str = HOST
    """Address to listen on."""
    database: str | None = None
    """Address of a PostgreSQL server; default: SQLite files in the workspace."""
    artifacts: str | None = None
    """Address of an object store for MLflow's artifacts; default: a folder in the workspace."""

    def url(self, port: int) -> str:
        """Return the URL of a server, as reached from this machine."""
        return f"http://{HOST if self.host == EVERYWHERE else self.host}:{port}"


@dataclass(frozen=True)
class _Plan:
    """A service to start: command, environment, URL and health check."""

    name: str
    command: list[str]
    environment: dict[str, str]
    address: str | None
    healthy: Callable[[], bool]


def start_services(workspace: Path, wanted: Wanted, say: Callable[[str], None]) -> dict[str, Service]:
    """Start the services that are not running and wait until all are healthy; on failure stop those that it started.

    Raises:
        UserError: a port is in use, the database or object store cannot be used, or a service did not become healthy.
    """
    services = running_services(workspace)
    ran_before = tuple(services)
    if services:
        say(f"already running, with the options of their start: {', '.join(services)}; `har down` stops them")
    for name, port in (("prefect", wanted.prefect_port), ("mlflow", wanted.mlflow_port)):
        if name not in services:
            _refuse_port(name, wanted.host, port)
    stores = Stores() if len(services) == NUM_SERVICES else open_stores(workspace, wanted.database, wanted.artifacts)
    prefect_url = _running_address(services, "prefect") or wanted.url(wanted.prefect_port)
    mlflow_url = _running_address(services, "mlflow") or wanted.url(wanted.mlflow_port)
    try:
        plans = _plan(workspace, wanted.host, prefect_url, mlflow_url, stores)
        for plan in plans:
            if plan.name not in services:
                if plan.name == "deployments":
                    _wait_until(services["prefect"], plans[0].healthy)
                services[plan.name] = _start(plan.name, plan.command, plan.address, workspace, plan.environment)
                remember_services(workspace, services)
        for plan in plans:
            _wait_until(services[plan.name], plan.healthy)
            say(f"{plan.name:<12} {services[plan.name].address or 'har/' + ', har/'.join(deployment_names())}")
    except BaseException:
        stop_services(workspace, keep=ran_before)
        raise
    if stores.is_shared:
        share(workspace, mlflow_url, say)
    return services


def _running_address(services: dict[str, Service], name: str) -> str | None:
    return services[name].address if name in services else None


def _plan(workspace: Path, host: str, prefect_url: str, mlflow_url: str, stores: Stores) -> list[_Plan]:
    prefect_port, mlflow_port = (url.rpartition(":")[2] for url in (prefect_url, mlflow_url))
    prefect = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", prefect_port]
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", mlflow_port, "--workers", "1"]
    deployments = [sys.executable, "-m", "flows.deployments"]
    deployed = [f"{prefect_url}/api/deployments/name/har/{name}" for name in deployment_names()]
    base = service_environment(workspace, f"{prefect_url}/api")
    logged = {ENVIRONMENT_VARIABLE: mlflow_url} if stores.is_shared else {}
    return [
        _Plan("prefect", prefect, base | stores.prefect, prefect_url, lambda: _answers(f"{prefect_url}/api/health")),
        _Plan("mlflow", mlflow, base | stores.mlflow, mlflow_url, lambda: _answers(f"{mlflow_url}/health")),
        _Plan("deployments", deployments, base | stores.runs | logged, None, lambda: all(map(_answers, deployed))),
    ]


def service_environment(workspace: Path, api_url: str) -> dict[str, str]:
    """Return the environment of Prefect's and MLflow's processes, which store everything in the workspace."""
    return os.environ | {
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(workspace / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline_lib,tasks,flows",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",  # what a server answers while its PostgreSQL restarts
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
        **QUIET,
    }


def start_temporary_prefect(workspace: Path) -> str:
    """Start a Prefect server without UI that ends with this process; return its API URL.

    It uses the workspace's database, so that `har up` shows the run later. It starts while this process imports Prefect, which
    Prefect's own temporary server would not. Call before importing Prefect: exit handlers run in reverse order, so the server
    then outlives Prefect's last log lines.
    """
    port = _free_port()
    address = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", HOST, "--port", str(port), "--log-level", "error"]
    environment = service_environment(workspace, f"{address}/api") | {"PREFECT_SERVER_UI_ENABLED": "false"}
    service = _start("temporary-prefect", command, address, workspace, environment, preexec_fn=_die_with_parent)
    _temporary.append(service)
    atexit.register(stop_temporary_prefect)
    return f"{address}/api"


def stop_temporary_prefect() -> None:
    """Stop the server of `start_temporary_prefect`, if any."""
    while _temporary:
        _stop(_temporary.pop())


def wait_for_prefect(api_url: str) -> None:
    """Wait until a Prefect server answers.

    Raises:
        UserError: it does not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while not _answers(f"{api_url}/health"):
        if time.monotonic() > deadline:
            raise UserError(f"PREFECT_API_URL: no Prefect server answers at {api_url}; `har up` starts one, or unset it")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Have Linux end this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_services(workspace: Path, keep: Sequence[str] = ()) -> list[str]:
    """Stop the services of this workspace but those to keep; return their names."""
    services = running_services(workspace)
    stopped = [name for name in services if name not in keep]
    for name in reversed(stopped):
        _stop(services.pop(name))
    if services:
        remember_services(workspace, services)
    else:
        state_file(workspace).unlink(missing_ok=True)
    return stopped


def _stop(service: Service) -> None:
    """Terminate a process and its children; kill them after a timeout."""
    process = service.process()
    if not process:
        return
    family = [*process.children(recursive=True), process]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for survivor in alive:
        survivor.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
    for started in _started:
        started.poll()


def _start(
    name: str,
    command: list[str],
    address: str | None,
    workspace: Path,
    environment: dict[str, str],
    preexec_fn: Callable[[], None] | None = None,
) -> Service:
    log = workspace / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=preexec_fn,
        )
    _started.append(process)
    return Service(name, process.pid, psutil.Process(process.pid).create_time(), address, str(log))


def _wait_until(service: Service, healthy: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not healthy():
        if service.process() is None or time.monotonic() > deadline:
            state = "ended" if service.process() is None else f"did not answer within {START_SECONDS:.0f} s"
            last = _last_line(Path(service.log))
            raise UserError(f"har up: the {service.name} process {state}; last line of {service.log}: {last}")
        time.sleep(0.5)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "empty")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _refuse_port(name: str, host: str, port: int) -> None:
    """Check that a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"har up: {name} cannot listen on {host}:{port} ({error.strerror}); "
                    "--host takes an IPv4 address or name of this machine"
                ) from None
            raise UserError(
                f"har up: port {port}, wanted for {name}, is taken by another program; stop it, or choose another port "
                f"with --{name}-port"
            ) from None
