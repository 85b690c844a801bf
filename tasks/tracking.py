"""MLflow: one parent run a flow run, one child a model. Everything is logged by run id, since tasks run in threads.

MLflow takes seconds to import, so only functions that talk to it import it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import UserError
from pipeline_lib.params import TrackingParams

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from pipeline_lib.sweep.trials import Trial

logger = logging.getLogger(__name__)

SERVER_SECONDS = 15.0
ENVIRONMENT_VARIABLE = "MLFLOW_TRACKING_URI"
WORKSPACE_TAG = "har.workspace"
NOT_FOR_USERS = (
    "(?s).*input example",  # the signature says all that an example would, and that would be a JSON file of megabytes
    "(?s).*integer column",  # which might have missing values elsewhere; a clip table has none
    "For backward compatibility, 'str'",  # MLflow's own use of pandas
)
"""What MLflow warns of that is as it should be. Ignored for the whole process, and from before there are threads: Prefect's
leave `catch_warnings` at any moment, and filters set after they entered are gone then."""
for message in NOT_FOR_USERS:
    warnings.filterwarnings("ignore", message)
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment in which MLflow keeps to itself."""
RUNS_A_PAGE = 1000
EPOCH_METRICS = {
    "train_loss": "train/loss",
    "train_frame_accuracy": "train/frame_accuracy",
    "val_loss": "val/loss",
    "val_calibrated_loss": "val/calibrated_loss",
    "val_frame_accuracy": "val/frame_accuracy",
    "val_clip_accuracy": "val/clip_accuracy",
}


def tracking_uri(params: TrackingParams, workspace: Path) -> str:
    """Return the MLflow tracking address: the parameter, the usual environment variable, or SQLite in the workspace."""
    return params.uri or os.environ.get(ENVIRONMENT_VARIABLE) or f"sqlite:///{workspace / 'mlflow' / 'mlflow.db'}"


def _client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient()


def init_tracking(params: TrackingParams, workspace: Path) -> tuple[str, str]:
    """Point MLflow at its store, making the database and the experiment if needed; call once, before any thread logs.

    Returns:
        The tracking address and the experiment's id.

    Raises:
        UserError: the store cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(params, workspace)
    (workspace / "mlflow").mkdir(parents=True, exist_ok=True)
    if uri.startswith("http"):
        _refuse_silence(uri)
    try:
        _make_database(uri)
        _set_uri(uri)
        experiment = mlflow.get_experiment_by_name(params.experiment)
        if experiment:
            return uri, experiment.experiment_id
        # A server keeps artifacts where it was told to; the workspace's own store keeps them beside the database.
        location = (workspace / "mlflow" / "artifacts").as_uri() if uri.startswith("sqlite:") else None
        return uri, mlflow.create_experiment(params.experiment, artifact_location=location)
    except (MlflowException, OSError) as error:
        raise UserError(f"tracking.uri: MLflow at {uri} cannot be used: {str(error).splitlines()[0]}") from None


def open_tracking(workspace: Path) -> str:
    """Point MLflow at the store that runs of this workspace wrote to, for a command that only reads it; return its address.

    Raises:
        UserError: there is none yet, or its server does not answer.
    """
    uri = tracking_uri(TrackingParams(), workspace)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"{workspace}: no run in this workspace yet; `har run` makes one, or name another with --workspace")
    if uri.startswith("http"):
        _refuse_silence(uri)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _set_uri(uri)
    return uri


def current_uri() -> str:
    """Return the address of the store that MLflow is pointed at."""
    import mlflow

    return str(mlflow.get_tracking_uri())


def _make_database(uri: str) -> None:
    """Make a SQLite database whole or not at all: of one that a killed run left half made MLflow can make nothing any more."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".draft-") as folder:
        draft = Path(folder) / path.name
        MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process was faster
            os.link(draft, path)


def _refuse_silence(uri: str) -> None:
    """Ask a server once whether it is there; MLflow itself would ask for minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answers, if only to say no
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"tracking.uri: no MLflow server answers at {uri} ({reason}); start it or leave the key out") from None


def _set_uri(uri: str) -> None:
    """Point MLflow at its store. MLflow also sets the environment variable, which a later run in this process would obey."""
    import mlflow

    before = os.environ.pop(ENVIRONMENT_VARIABLE, None)
    mlflow.set_tracking_uri(uri)
    os.environ.pop(ENVIRONMENT_VARIABLE, None)
    if before is not None:
        os.environ[ENVIRONMENT_VARIABLE] = before


def start_parent(experiment_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Open the flow run's MLflow run and return its id."""
    return _start(experiment_id, name, tags, params)


def start_child(parent_run_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Open a run under another one, whose workspace and flow run it shares, and return its id."""
    parent = _client().get_run(parent_run_id)
    inherited = {key: value for key, value in parent.data.tags.items() if key.startswith(("har.", "prefect."))}
    return _start(parent.info.experiment_id, name, {"mlflow.parentRunId": parent_run_id, **inherited, **tags}, params)


def _start(experiment_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
    from mlflow.entities import Param

    client = _client()
    run_id = str(client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id)
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in flatten(params).items()])
    return run_id


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as `section.key` names, as `--set` takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def end_run(run_id: str, status: str) -> None:
    """Close a run as FINISHED, FAILED or KILLED."""
    _client().set_terminated(run_id, status)


def find_dead_runs(workspace_id: str, experiment_id: str | None = None) -> list[str]:
    """Return the ids of the workspace's open runs, in one or all experiments. If no run holds it, their processes are gone."""
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
    """Close as KILLED the runs of this workspace whose process is gone; call only while holding the workspace."""
    run_ids = find_dead_runs(workspace_id, experiment_id)
    for run_id in run_ids:
        end_run(run_id, "KILLED")
    return len(run_ids)


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics in one call."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    _client().log_batch(run_id, [Metric(key, float(value), now_ms, step) for key, value in metrics.items()])


def log_epoch(run_id: str | None, record: Mapping[str, float]) -> None:
    """Log one epoch of training as a step."""
    if run_id:
        metrics = {name: record[key] for key, name in EPOCH_METRICS.items() if record.get(key) is not None}
        log_metrics(run_id, metrics, step=int(record["epoch"]))


def log_trial(sweep_run_id: str | None, trial: Trial) -> None:
    """Log a finished trial of a sweep as a run under the sweep's."""
    if sweep_run_id is None:
        return
    tags = {"stage": "sweep", "trial": str(trial.number), "trial.state": trial.state}
    run_id = start_child(sweep_run_id, f"trial {trial.number}", tags, trial.params)
    for record in trial.history:
        log_epoch(run_id, record)
    if trial.value is not None:
        log_metrics(run_id, {"sweep/val_clip_accuracy": trial.value})
    end_run(run_id, "FAILED" if trial.state == "failed" else "FINISHED")


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
    """Log a table that MLflow's page shows as one."""
    _client().log_table(run_id, {str(name): values for name, values in table.to_dict("list").items()}, name)


def log_dataset(run_ids: Iterable[str], clips: pd.DataFrame, name: str, digest: str) -> None:
    """Log the clip table as the runs' dataset input, once for each part."""
    from mlflow.data.pandas_dataset import from_pandas
    from mlflow.entities import DatasetInput, InputTag

    for part, rows in clips.groupby("part"):
        dataset = from_pandas(rows, name=f"{name}-{part}", digest=digest[:16])._to_mlflow_entity()
        tag = InputTag("mlflow.data.context", str(part))
        for run_id in run_ids:
            _client().log_inputs(run_id, [DatasetInput(dataset, [tag])])


class SystemMetrics:
    """Samples CPU, memory and GPU into a run until stopped."""

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
