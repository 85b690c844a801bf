"""Where the servers of `har up` keep records and artifacts: in the workspace, or in a team's PostgreSQL and object store.

Addresses with passwords are handed over by environment variables, which only the user's own processes can read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from pipeline_lib.addresses import redact
from pipeline_lib.errors import UserError
from pipeline_lib.params import TrackingParams
from tasks.mlflow import tracking

PROXIED = "mlflow-artifacts:"
"""How the addresses of artifacts begin that MLflow's server hands out itself."""


@dataclass(frozen=True)
class Stores:
    """Environment variables of the processes of `har up`."""

    prefect: dict[str, str] = field(default_factory=dict, repr=False)
    mlflow: dict[str, str] = field(default_factory=dict, repr=False)
    runs: dict[str, str] = field(default_factory=dict, repr=False)
    is_shared: bool = False
    """Whether runs log to the MLflow server, instead of the workspace's files."""


def open_stores(workspace: Path, database: str | None, artifacts: str | None) -> Stores:
    """Make what is missing of the stores and check that they answer.

    Args:
        workspace: folder of the stores by default.
        database: address of a PostgreSQL server.
        artifacts: `s3://bucket/prefix`.

    Raises:
        UserError: a store cannot be used.
    """
    if artifacts:
        _check_artifacts(artifacts)
    if database:
        return _on_postgresql(database, artifacts or _folder(workspace))
    if artifacts:
        tracking.make_database(tracking.sqlite_uri(workspace))
        return Stores(mlflow=_mlflow(tracking.sqlite_uri(workspace), artifacts), is_shared=True)
    return _in_workspace(workspace)


def _on_postgresql(address: str, artifacts: str) -> Stores:
    from pipeline_lib.postgresql import VARIABLE, for_asyncpg, make_databases, reveal

    urls = make_databases(address, ("mlflow", "prefect"), "har up --database")
    return Stores(
        prefect={"PREFECT_SERVER_DATABASE_CONNECTION_URL": reveal(for_asyncpg(urls["prefect"]))},
        mlflow=_mlflow(reveal(urls["mlflow"]), artifacts),
        runs={VARIABLE: address},
        is_shared=True,
    )


def _mlflow(database_uri: str, artifacts: str) -> dict[str, str]:
    return {
        "MLFLOW_BACKEND_STORE_URI": database_uri,
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
    }


def _in_workspace(workspace: Path) -> Stores:
    """Return the stores of a workspace for one user, whose runs write to them directly."""
    if tracking.workspace_server(workspace):
        raise UserError(
            f"har up: {workspace} has its records in a database or object store; give --database and --artifacts as before, "
            f"or delete {workspace / 'mlflow' / 'server.txt'} to begin new records in the workspace"
        )
    uri = os.environ.get(tracking.ENVIRONMENT_VARIABLE) or tracking.sqlite_uri(workspace)
    if uri.startswith("http"):
        raise UserError(
            f"har up: {tracking.ENVIRONMENT_VARIABLE} = {redact(uri)} is a server already; "
            "unset it to start one of this workspace"
        )
    tracking.init_tracking(TrackingParams(), workspace)
    return Stores(mlflow={"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DEFAULT_ARTIFACT_ROOT": _folder(workspace)})


def _folder(workspace: Path) -> str:
    return (workspace / "mlflow" / "artifacts").as_uri()


def _check_artifacts(address: str) -> None:
    """Look into the object store as MLflow's server will."""
    if not address.startswith("s3://"):
        raise UserError(f"har up --artifacts {redact(address)}: give s3://bucket/prefix")
    if find_spec("boto3") is None:
        raise UserError("har up --artifacts: boto3 is not installed; pip install 'har[s3]' brings it")
    from mlflow.artifacts import list_artifacts

    try:
        list_artifacts(artifact_uri=address)
    except Exception as error:  # boto3 makes its classes when it meets the error
        reason = " ".join(str(error).split())
        raise UserError(f"har up --artifacts {address}: the object store cannot be used: {reason}") from None


def share(workspace: Path, mlflow_url: str, say: Callable[[str], None]) -> None:
    """Have the workspace's runs log to the server; say so if older artifacts cannot be had from it."""
    from mlflow import MlflowClient

    tracking.set_workspace_server(workspace, mlflow_url)
    experiment = MlflowClient(mlflow_url).get_experiment_by_name(TrackingParams().experiment)
    if experiment and not experiment.artifact_location.startswith(PROXIED):
        say(
            f"experiment {experiment.name} keeps its artifacts in {redact(experiment.artifact_location)}, "
            "which only this machine reads; set tracking.experiment to a new name for runs whose models others load"
        )
