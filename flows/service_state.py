"""The servers of `har up` that run, as a file in the workspace names them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.servers import HOST, MLFLOW_PORT


@dataclass(frozen=True)
class Service:
    """A process that `har up` started."""

    name: str
    pid: int
    created: float
    """The process's start time: a process id alone can be another program's by now."""
    address: str | None
    log: str

    def process(self) -> psutil.Process | None:
        """Return the process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


def running_services(workspace: Path) -> dict[str, Service]:
    """Return the services of this workspace that run, by name."""
    try:
        rows = json.loads(state_file(workspace).read_text(encoding="utf-8"))
        services = [Service(**row) for row in rows]
    except (OSError, ValueError, TypeError):
        return {}
    return {service.name: service for service in services if service.process()}


def prefect_address(workspace: Path) -> str | None:
    """Return the API address of the Prefect server that `har up` started, if it runs."""
    service = running_services(workspace).get("prefect")
    return f"{service.address}/api" if service else None


def mlflow_address(workspace: Path) -> str:
    """Return the address of the MLflow server that `har up` started, or would start."""
    service = running_services(workspace).get("mlflow")
    return service.address if service and service.address else f"http://{HOST}:{MLFLOW_PORT}"


def remember_services(workspace: Path, services: dict[str, Service]) -> None:
    """Write down which services run."""
    rows = [asdict(service) for service in services.values()]
    state_file(workspace).write_text(json.dumps(rows, indent=2), encoding="utf-8")


def state_file(workspace: Path) -> Path:
    """Return the file that names them."""
    return workspace / "services.json"
