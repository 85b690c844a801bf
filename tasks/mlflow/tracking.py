"""MLflow tracking: one parent run a flow run, one child a training run. Logs by run id, since tasks run in threads.

MLflow takes seconds to import, so the functions that use it import it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pipeline_lib.addresses import redact, redact_all, redact_text
from pipeline_lib.errors import UserError
from pipeline_lib.params import TrackingParams
from tasks.background import Background

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

    from pipeline_lib.sweep.trials import Trial

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

SERVER_SECONDS = 15.0
AGAIN_SECONDS = 1.0
INTERNAL_ERROR = "too many 500 error"
ENVIRONMENT_VARIABLE = "MLFLOW_TRACKING_URI"
WORKSPACE_TAG = "har.workspace"
NOT_FOR_USERS = (
    "(?s).*input example",  # the signature says all that an example would, and that would be a JSON file of megabytes
    "(?s).*integer column",  # which might have missing values elsewhere; a clip table has none
    "For backward compatibility, 'str'",  # MLflow's own use of pandas
)
"""Irrelevant warnings of MLflow, ignored for the whole process. Set before threads start: Prefect's threads leave
`catch_warnings` at any time, which resets filters set in between."""
for message in NOT_FOR_USERS:
    warnings.filterwarnings("ignore", message)
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",  # where there is no git, as in the image
}
"""Environment that silences MLflow."""
IN_A_RUN = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": QUIET["GIT_PYTHON_REFRESH"],
}
"""Environment for runs: MLflow gives up a request within half a minute (`Background` retries) and prints no URLs."""
RUNS_A_PAGE = 1000
SCHEMA_ROWS = 1000
"""Rows of a table from which MLflow infers its schema."""
EPOCH_METRICS = {
    "train_loss": "train/loss",
    "train_frame_accuracy": "train/frame_accuracy",
    "val_loss": "val/loss",
    "val_calibrated_loss": "val/calibrated_loss",
    "val_frame_accuracy": "val/frame_accuracy",
    "val_clip_accuracy": "val/clip_accuracy",
}


def tracking_uri(params: TrackingParams, workspace: Path) -> str:
    """Return the tracking URI: the parameter, else MLFLOW_TRACKING_URI, else the workspace's server, else its SQLite file."""
    return params.uri or os.environ.get(ENVIRONMENT_VARIABLE) or workspace_server(workspace) or sqlite_uri(workspace)


def sqlite_uri(workspace: Path) -> str:
    """Return the URI of the workspace's SQLite file."""
    return f"sqlite:///{workspace / 'mlflow' / 'mlflow.db'}"


def workspace_server(workspace: Path) -> str | None:
    """Return the address of the MLflow server that keeps the workspace's records outside it, if there is one."""
    try:
        return _server_file(workspace).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def set_workspace_server(workspace: Path, address: str) -> None:
    """Have the workspace's runs and commands use an MLflow server from now on, whether it is up or not."""
    _server_file(workspace).parent.mkdir(parents=True, exist_ok=True)
    _server_file(workspace).write_text(f"{address}\n", encoding="utf-8")


def _server_file(workspace: Path) -> Path:
    return workspace / "mlflow" / "server.txt"


def _client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient()


def init_tracking(params: TrackingParams, workspace: Path) -> tuple[str, str]:
    """Set MLflow's tracking URI and create the database and experiment if needed; call before any thread logs.

    Returns:
        The tracking URI and the experiment's id.

    Raises:
        UserError: the store is unreachable.
    """
    import mlflow

    uri = tracking_uri(params, workspace)
    (workspace / "mlflow").mkdir(parents=True, exist_ok=True)
    for name, value in IN_A_RUN.items():
        os.environ.setdefault(name, value)
    if uri.startswith("http"):
        _refuse_silence(uri, workspace)
    with usable(uri):
        make_database(uri)
        _set_uri(uri)
        experiment = mlflow.get_experiment_by_name(params.experiment)
        if experiment:
            return uri, experiment.experiment_id
        # A server has its own artifact location; the workspace's store keeps artifacts next to the database.
        location = (workspace / "mlflow" / "artifacts").as_uri() if uri.startswith("sqlite:") else None
        return uri, mlflow.create_experiment(params.experiment, artifact_location=location)


@contextmanager
def usable(uri: str) -> Iterator[None]:
    """Turn MLflow's errors in the block into a one-line UserError; for the start of a run.

    Raises:
        UserError: the store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    _redact_logs()
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = redact_text(str(error).splitlines()[0])
        raise UserError(f"tracking.uri: MLflow at {redact(uri)} cannot be used: {reason}") from None


def _redact_logs() -> None:
    """Redact addresses in MLflow's own log lines."""

    def redacted(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact_text(record.getMessage()), ()
        return True

    for handler in logging.getLogger("mlflow").handlers:
        if not handler.filters:
            handler.addFilter(redacted)


def is_outage(error: Exception) -> bool:
    """Return whether an exception means a temporary outage of the store, rather than a rejected record."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import ConnectionError as Unconnected
    from requests import Timeout

    if isinstance(error, RestException):
        return False
    if isinstance(error, MlflowException):
        text = str(error)
        failed = text.startswith("API request") and INTERNAL_ERROR not in text
        return failed or "database is locked" in text
    return isinstance(error, Unconnected | Timeout | ConnectionError | TimeoutError)


def _call_again_after_500(call: Callable[[], Result]) -> Result:
    """Call again after an internal error, with which MLflow's server answers when its database breaks off in a transaction."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if INTERNAL_ERROR not in str(error):
            raise
    time.sleep(AGAIN_SECONDS)
    return call()


class TrackedRun:
    """An MLflow run, written to in the background in the order of the calls."""

    def __init__(self, background: Background, opened: str | Callable[[], str]) -> None:
        """Take the id of an open run, or a function that opens one in the background."""
        self._background = background
        self._id: str | None = None
        self._open = opened
        if isinstance(opened, str):
            self._id = opened
        else:
            background.call(self._set_id)

    def _set_id(self) -> None:
        assert callable(self._open)
        self._id = _call_again_after_500(self._open)

    @property
    def id(self) -> str | None:
        """The run's id, or None if it could not be opened; waits while it is being opened."""
        self._background.wait(lambda: self._id is not None)
        return self._id

    def log(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Queue `function(run_id, *args, **kwargs)`; skipped if the run could not be opened."""

        def call() -> None:
            if self._id is not None:
                _call_again_after_500(functools.partial(function, self._id, *args, **kwargs))

        self._background.call(call)

    def open_child(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> TrackedRun:
        """Open a child of this run. No other child of it may have the name."""
        has_begun = False

        def open_it() -> str:
            nonlocal has_begun
            if self._id is None:
                raise RuntimeError(f"{name} has no parent run")
            is_retry, has_begun = has_begun, True
            return start_child(self._id, name, tags, params, is_retry=is_retry)

        return TrackedRun(self._background, open_it)


def open_tracking(workspace: Path) -> str:
    """Set MLflow's tracking URI to the workspace's existing store, for commands that only read it; return the URI.

    Raises:
        UserError: there is no store yet, or its server does not answer.
    """
    uri = tracking_uri(TrackingParams(), workspace)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(
            f"{workspace}: no run was recorded here; start one with `har run`, name another workspace or cache with "
            f"--workspace, or a server with {ENVIRONMENT_VARIABLE}"
        )
    if uri.startswith("http"):
        _refuse_silence(uri, workspace)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _set_uri(uri)
    return uri


def current_uri() -> str:
    """Return MLflow's tracking URI, redacted for display."""
    import mlflow

    return redact(str(mlflow.get_tracking_uri()))


def make_database(uri: str) -> None:
    """Create a SQLite database atomically: MLflow cannot repair one that is half made."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".draft-") as folder:
        draft = Path(folder) / path.name
        MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process created it
            os.link(draft, path)


def _refuse_silence(uri: str, workspace: Path) -> None:
    """Check that a server answers, with credentials removed from the URL, which urllib does not support."""
    parts = urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/health", query="")
    try:
        with urllib.request.urlopen(address.geturl(), timeout=SERVER_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # any answer will do
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        how = "`har up` starts it" if uri == workspace_server(workspace) else "start it or leave the key out"
        raise UserError(f"tracking.uri: no MLflow server answers at {redact(uri)} ({reason}); {how}") from None


def _set_uri(uri: str) -> None:
    """Set MLflow's tracking URI and restore the environment variable, which MLflow sets too."""
    import mlflow

    before = os.environ.pop(ENVIRONMENT_VARIABLE, None)
    mlflow.set_tracking_uri(uri)
    os.environ.pop(ENVIRONMENT_VARIABLE, None)
    if before is not None:
        os.environ[ENVIRONMENT_VARIABLE] = before


def start_parent(experiment_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Open the parent run of a flow run and return its id."""
    return _start(experiment_id, name, tags, params)


def start_child(
    parent_run_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any], *, is_retry: bool = False
) -> str:
    """Open a child run with its parent's workspace and flow run tags, and return its id.

    If `is_retry`, an earlier call failed, perhaps after the run had been made. Then the child with this name is taken.
    """
    parent = _client().get_run(parent_run_id)
    inherited = {key: value for key, value in parent.data.tags.items() if key.startswith(("har.", "prefect."))}
    made = _find_child(parent.info.experiment_id, parent_run_id, name) if is_retry else None
    tags = {"mlflow.parentRunId": parent_run_id, **inherited, **tags}
    return _start(parent.info.experiment_id, name, tags, params, made=made)


def _find_child(experiment_id: str, parent_run_id: str, name: str) -> str | None:
    wanted = f"tags.mlflow.parentRunId = '{parent_run_id}' and attributes.run_name = '{name}'"
    found = _client().search_runs([experiment_id], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def _start(
    experiment_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any], *, made: str | None = None
) -> str:
    from mlflow.entities import Param

    client = _client()
    run_id = made or str(client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id)
    client.log_batch(run_id, params=[Param(accepted(key), str(value)) for key, value in flatten(redact_all(params)).items()])
    return run_id


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as `section.key` names, as `--set` takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def accepted(name: str) -> str:
    """Return a name of a parameter or metric as MLflow accepts it, which refuses the @ and + of `MODEL@STREAM+STREAM`."""
    return name.replace("@", " on ").replace("+", " and ")


def end_run(run_id: str, status: str) -> None:
    """Close a run as FINISHED, FAILED or KILLED."""
    _client().set_terminated(run_id, status)


def find_dead_runs(workspace_id: str, experiment_id: str | None = None) -> list[str]:
    """Return the ids of the workspace's open runs in one or all experiments; dead if no process holds the workspace."""
    client, token, run_ids = _client(), None, list[str]()
    experiment_ids = [experiment_id] if experiment_id else [one.experiment_id for one in client.search_experiments()]
    filter_string = f"attributes.status = 'RUNNING' AND tags.`{WORKSPACE_TAG}` = '{workspace_id}'"
    while True:
        page = client.search_runs(experiment_ids, filter_string, max_results=RUNS_A_PAGE, page_token=token)
        run_ids += [run.info.run_id for run in page]
        token = page.token
        if not token:
            return run_ids


def end_dead_runs(experiment_id: str, workspace_id: str) -> int:
    """Close the workspace's dead runs as KILLED; call only while holding the workspace."""
    run_ids = find_dead_runs(workspace_id, experiment_id)
    for run_id in run_ids:
        end_run(run_id, "KILLED")
    return len(run_ids)


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics in one call."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    _client().log_batch(run_id, [Metric(key, float(value), now_ms, step) for key, value in metrics.items()])


def log_epoch(run_id: str, record: Mapping[str, float]) -> None:
    """Log one epoch of training as a step."""
    metrics = {name: record[key] for key, name in EPOCH_METRICS.items() if record.get(key) is not None}
    log_metrics(run_id, metrics, step=int(record["epoch"]))


def log_trial(sweep_run: TrackedRun, trial: Trial) -> None:
    """Log a finished trial as a child run of its sweep."""
    tags = {"stage": "sweep", "trial": str(trial.number), "trial.state": trial.state}
    run = sweep_run.open_child(f"trial {trial.number}", tags, trial.params)
    for record in trial.history:
        run.log(log_epoch, record)
    if trial.value is not None:
        run.log(log_metrics, {"sweep/val_clip_accuracy": trial.value})
    run.log(end_run, "FAILED" if trial.state == "failed" else "FINISHED")


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    client = _client()
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def log_json(run_id: str, value: Any, name: str) -> None:
    """Log a value as a JSON file."""
    _client().log_dict(run_id, value, name)


def log_folder(run_id: str, folder: Path, name: str) -> None:
    """Log every file of a folder under `name/`."""
    _client().log_artifacts(run_id, str(folder), name)


def log_files(run_id: str, files: Iterable[Path], name: str) -> None:
    """Log files under `name/`."""
    client = _client()
    for file in files:
        client.log_artifact(run_id, str(file), name)


def log_rows(run_id: str, table: pd.DataFrame, name: str) -> None:
    """Log a table that MLflow displays as a table."""
    _client().log_table(run_id, {str(name): values for name, values in table.to_dict("list").items()}, name)


def log_dataset(run_id: str, folder: Path, name: str, digest: str) -> None:
    """Log the clip table in a chunk artifact's folder as the run's dataset input, once for each split."""
    _client().log_inputs(run_id, _dataset_inputs(folder, name, digest))


@functools.lru_cache(maxsize=8)  # the same for all models
def _dataset_inputs(folder: Path, name: str, digest: str) -> list[DatasetInput]:
    from mlflow.data.pandas_dataset import from_pandas
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from pipeline_lib.artifacts.tables import read_clips

    def describe(split: str, rows: pd.DataFrame) -> dict[str, str]:
        """Return what `from_pandas(rows)` says, which would go through all rows for the schema."""
        described = from_pandas(rows.head(SCHEMA_ROWS), name=f"{name}-{split}", digest=digest[:16]).to_dict()
        return described | {"profile": json.dumps({"num_rows": len(rows), "num_elements": int(rows.size)})}

    return [
        DatasetInput(Dataset(**describe(str(split), rows)), [InputTag("mlflow.data.context", str(split))])
        for split, rows in read_clips(folder).groupby("split")
    ]


class SystemMetrics:
    """Logs CPU, memory and GPU metrics to a run until stopped."""

    def __init__(self, run_id: str, *, enabled: bool) -> None:
        """Begin sampling every 5 s, if enabled."""
        self._monitor: Any = None
        if enabled:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(run_id, sampling_interval=5, samples_before_logging=1)
            self._monitor.start()

    def stop(self) -> None:
        """Stop sampling."""
        if self._monitor:
            self._monitor.finish()
