"""What a run leaves in MLflow and Prefect: parent and child runs, manifests, tables, links, progress."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect import runtime
from prefect.artifacts import create_link_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows import terminal
from flows.plan import RunKey, TrainingRun, best_training_run
from flows.services import mlflow_address
from flows.summary import lost_videos
from pipeline_lib.addresses import redact
from pipeline_lib.artifacts import layout
from pipeline_lib.params import Params
from tasks import progress
from tasks.background import Background
from tasks.mlflow import registry, tracking
from tasks.stage import Context, Ref

if TYPE_CHECKING:
    from flows.execution import StageResult, Work
    from flows.run import Run

logger = logging.getLogger(__name__)

DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""

SCORES = ("frame_accuracy", "clip_accuracy", "video_accuracy", "video_accuracy_by_mean", "macro_f1", "calibration_error")
ENDS = ("low", "high")
"""What the ends of a 95 % interval are called."""
ALIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


@dataclass
class Record:
    """The records of one run. What MLflow and Prefect are told, they are told in the background."""

    context: Context
    tracking_uri: str
    experiment_id: str
    parent: tracking.TrackedRun
    mlflow: Background
    prefect: Background
    system_metrics: tracking.SystemMetrics
    bars: ProgressBars
    children: dict[RunKey, tracking.TrackedRun] = field(default_factory=dict)
    """The MLflow run of each training_run."""
    sweeps: dict[str, tracking.TrackedRun] = field(default_factory=dict)
    """The MLflow run of each model's sweep, under which its trials are."""
    _ended: set[RunKey] = field(default_factory=set)
    _backbones: set[str] = field(default_factory=set)
    """Digests of the backbones that the parent run has."""

    @property
    def parent_run_id(self) -> str:
        """The MLflow run of the whole, which is open from the beginning."""
        assert self.parent.id
        return self.parent.id

    @property
    def address(self) -> str:
        """Where a browser shows the parent run, once an MLflow server is up."""
        base = self.tracking_uri if self.tracking_uri.startswith("http") else mlflow_address(self.context.workspace)
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.parent_run_id}"

    def open_child(self, training_run: TrainingRun, params: Params) -> tracking.TrackedRun:
        """Open a training_run's own MLflow run."""
        sections = params.model_dump(mode="json", include={"chunk", "finetune", "features"})
        values = {"train": training_run.params.recipe()} | sections
        values["chunk"]["fold"] = training_run.fold
        tags = {"model": training_run.name, "fold": str(training_run.fold), "seed": str(training_run.seed), "stage": "train"}
        self.children[training_run.key] = self.parent.open_child(training_run.label, tags, values)
        return self.children[training_run.key]

    def open_sweep(self, model: str) -> tracking.TrackedRun:
        """Open the MLflow run that a sweep's trials go under."""
        tags = {"model": model, "stage": "sweep"}
        self.sweeps[model] = self.parent.open_child(f"sweep {model}", tags, {})
        return self.sweeps[model]

    def end_child(self, key: RunKey, status: str) -> None:
        """Close a training_run's MLflow run as FINISHED or FAILED."""
        self.children[key].log(tracking.end_run, status)
        self._ended.add(key)

    def log_work(self, run: Run, work: Work, ref: Ref) -> None:
        """Record finished work, whether it was made or answered from artifacts."""
        match work.kind:
            case "subsample" if len(run.refs["subsample"]) == len(run.shard_names):
                self._log_quarantine(run)
            case "chunk":
                self._log_clips(run, work.key, ref)
            case "sweep":
                self._log_folder(self.sweeps[str(work.key)], ref, "sweep")
            case "train":
                self._log_training(run, run.training_run(work.key), ref)
            case "evaluate":
                self._log_evaluation(self.children[run.training_run(work.key).key], ref)
            case "controls":
                self.parent.log(tracking.log_folder, ref.directory(self.context), f"controls/fold {work.key}")
            case "results":
                self._log_results(ref.directory(self.context))
            case "heatmaps":
                self.children[run.training_run(work.key).key].log(tracking.log_folder, ref.directory(self.context), "heatmaps")
            case "report":
                self._log_report(ref)

    def _log_folder(self, run: tracking.TrackedRun, ref: Ref, name: str) -> None:
        """Log an artifact to a run, and to its tags which one it is and whether it was made."""
        run.log(tracking.log_folder, ref.directory(self.context), name)
        run.log(tracking.set_tags, {"artifact_key": ref.key, f"cache.{ref.stage}": "miss" if ref.made else "hit"})

    def _log_quarantine(self, run: Run) -> None:
        lost = lost_videos(run)
        rows = [{str(name): str(value) for name, value in row.items()} for row in lost.to_dict("records")]
        total = len(lost) + sum(ref.counts["videos"] for ref in run.refs["subsample"].values())
        text = f"{len(lost)} of {total} videos not decodable"
        self.prefect.call(lambda: create_table_artifact(key="quarantine", table=rows, description=text))
        self.parent.log(tracking.log_rows, lost, "quarantine.json")

    def _log_clips(self, run: Run, fold: Hashable, ref: Ref) -> None:
        name = "dataset" if len(run.params.chunk.folds) == 1 else f"dataset/fold {fold}"
        self.parent.log(tracking.log_files, [ref.directory(self.context) / layout.CLIPS], name)
        self.parent.log(tracking.log_dataset, ref.directory(self.context), "clips", ref.content_key)

    def _log_training(self, run: Run, training_run: TrainingRun, ref: Ref) -> None:
        child = self.children[training_run.key]
        if not ref.made:  # else every epoch was logged as it ended
            for record in _read_json(ref.directory(self.context) / layout.HISTORY):
                child.log(tracking.log_epoch, record)
        self._log_folder(child, ref, "checkpoint")
        clips = run.refs["chunk"][training_run.fold]
        child.log(tracking.log_dataset, clips.directory(self.context), "clips", clips.content_key)
        child.log(tracking.set_tags, _candidate_tags(training_run, ref))
        child.log(self._log_bundle, training_run, ref)

    def _log_bundle(self, child_run_id: str, training_run: TrainingRun, ref: Ref) -> None:
        """Log to the child what its model needs beside the checkpoint, and to the parent each backbone once."""
        candidate = self._candidate(child_run_id, training_run, ref)
        self._backbones |= registry.log_bundles(self.parent_run_id, [candidate], known=self._backbones)

    def _candidate(self, child_run_id: str, training_run: TrainingRun, ref: Ref) -> registry.Candidate:
        from pipeline_lib.predict.provenance import bundle_of_training

        trained = self.context.store.load("train", ref.key)
        assert trained, "train artifacts of this run are there"
        bundle = bundle_of_training(self.context.store, trained, training_run.label)
        return registry.Candidate(child_run_id, bundle, _candidate_tags(training_run, ref))

    def _register_best(self, parent_run_id: str, training_runs: Sequence[TrainingRun], refs: Sequence[Ref]) -> None:
        """Register the best of the trained models."""
        best = best_training_run(training_runs, [ref.counts for ref in refs])
        child_run_id = self.children[training_runs[best].key].id
        if child_run_id is None:
            return
        found = registry.register(self._candidate(child_run_id, training_runs[best], refs[best]))
        tracking.set_tags(parent_run_id, {registry.VERSION: str(found.version)})
        terminal.say(f"registered {registry.describe(found)}: {registry.standing(found)}")

    def _log_evaluation(self, child: tracking.TrackedRun, ref: Ref) -> None:
        folder = ref.directory(self.context)
        maps = folder / layout.MAPS
        attention = _read_json(maps)["measures"] if maps.is_file() else {}
        child.log(tracking.log_metrics, _test_metrics(_read_json(folder / layout.METRICS), attention))
        child.log(tracking.log_folder, folder, "evaluation")

    def _log_results(self, folder: Path) -> None:
        results = _read_json(folder / layout.RESULTS)
        self.parent.log(tracking.log_folder, folder, "results")
        self.parent.log(tracking.log_metrics, _parent_metrics(results))
        columns = ("model", "num_training_runs", *SCORES)
        table = [{name: ({**row, **row["mean"]}).get(name) for name in columns} for row in results["models"]]
        text = "Accuracy on the test split, mean over folds and seeds"
        self.prefect.call(lambda: create_table_artifact(key="results", table=table, description=text))

    def _log_report(self, ref: Ref) -> None:
        page = f"{self.address}/artifacts/report/index.html"
        self.parent.log(tracking.log_folder, ref.directory(self.context), "report")
        self.parent.log(tracking.set_tags, {DESCRIPTION: f"[Report](#{page.partition('#')[2]})"})
        self.prefect.call(lambda: create_link_artifact(key="report", link=page, link_text="This run's report"))

    def log_stage(self, run: Run, stage: str, result: StageResult) -> None:
        """Record a stage that is over, and register the best model once all are trained."""
        terminal.say_stage(stage, result)
        manifests = [ref.model_dump() | {"params": _params_of(self.context, ref)} for ref in result.refs]
        self.parent.log(tracking.log_json, manifests, f"manifests/{stage}.json")
        self.parent.log(tracking.set_tags, {f"cache.{stage}": result.cache})
        self.parent.log(tracking.log_metrics, {f"seconds/{stage}": result.seconds} | _counts(stage, result))
        if stage == "train":
            trained = run.refs["train"]
            training_runs = [training_run for training_run in run.training_runs if training_run.key in trained]
            self.parent.log(self._register_best, training_runs, [trained[training_run.key] for training_run in training_runs])

    def close(self, status: str, run: Run) -> None:
        """Close every MLflow run that is open as FINISHED, FAILED or KILLED, and wait until all is written."""
        self.bars.close()
        if status == "KILLED":  # there is no time for what waits
            self.mlflow.discard()
            self.prefect.discard()
        self.parent.log(lambda _: self.system_metrics.stop())
        if run.summary:
            self.parent.log(tracking.log_json, run.summary, "summary.json")
        open_children = [child for key, child in self.children.items() if key not in self._ended]
        for tracked in (*open_children, *self.sweeps.values(), self.parent):
            tracked.log(tracking.end_run, status)
        self.mlflow.close()
        self.prefect.close()


class ProgressBars:
    """One Prefect progress artifact a stage, brought up to date in the background at every fifth percent."""

    def __init__(self, prefect: Background) -> None:
        """Listen to the stages' progress."""
        self._prefect = prefect
        self._lock = threading.Lock()
        self._artifacts: dict[str, Any] = {}
        self._fives: dict[str, int] = {}
        self.close = progress.listen(self._show)

    def _show(self, stage: str, done: float, total: float | None) -> None:
        percent = int(100 * min(1.0, done / total)) if total else 0
        with self._lock:
            is_news = bool(total) and percent // 5 > self._fives.get(stage, -1)
            if is_news:
                self._fives[stage] = percent // 5
        if is_news:
            self._prefect.call(lambda: self._write(stage, float(percent)))

    def _write(self, stage: str, percent: float) -> None:
        if stage in self._artifacts:
            update_progress_artifact(self._artifacts[stage], percent)
        else:
            self._artifacts[stage] = create_progress_artifact(percent, key=f"progress-{stage}", description=stage)


def _is_prefect_outage(error: Exception) -> bool:
    return isinstance(error, httpx.TransportError)


def _candidate_tags(training_run: TrainingRun, ref: Ref) -> dict[str, str]:
    accuracy = f"{ref.counts['best_val_clip_accuracy']:.6f}"
    return {
        "model": training_run.name,
        "fold": str(training_run.fold),
        "seed": str(training_run.seed),
        "val_accuracy": accuracy,
    }


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _test_metrics(metrics: dict[str, Any], attention: dict[str, Any]) -> dict[str, float]:
    """Return an evaluation's numbers and its attention's measures as MLflow metrics; an interval becomes its two ends."""
    attended = {f"attention_{name}": row for name, row in attention.items()}
    metrics = metrics | {name: row["model"] for name, row in attended.items()}
    intervals = metrics["intervals"] | {name: row["interval"] for name, row in attended.items()}
    ends = {f"{name}_{end}": value for name, pair in intervals.items() for end, value in zip(ENDS, pair, strict=True)}
    flat = tracking.flatten({key: value for key, value in metrics.items() if key != "intervals"}) | ends
    return {f"test/{key.replace('.', '_')}": value for key, value in flat.items() if isinstance(value, int | float)}


def _parent_metrics(results: dict[str, Any]) -> dict[str, float]:
    """Return what the run as a whole found: each model's means and deviations, each control's mean, each claim's difference."""
    metrics: dict[str, float] = {}
    for row in results["models"]:
        metrics |= {f"{row['model']}/{name}": value for name, value in row["mean"].items()}
        metrics |= {f"{row['model']}/{name}_sd": value for name, value in row["standard_deviation"].items()}
    for claim in results["attention_claims"]:
        name = f"attention_claims/{claim['measure']}"
        metrics |= {name: claim["difference"]} | {
            f"{name}_{end}": value for end, value in zip(ENDS, claim["interval"], strict=True)
        }
    return metrics | {f"controls/{name}": row["mean"] for name, row in results["controls"].items()}


def _params_of(context: Context, ref: Ref) -> Any:
    artifact = context.store.load(ref.stage, ref.key)
    return artifact.manifest.params if artifact else None


def _counts(stage: str, result: StageResult) -> dict[str, float]:
    """Return the stage's counts, summed over its shards, as metrics."""
    totals: dict[str, float] = {}
    for ref in result.refs:
        for key, value in tracking.flatten(ref.counts).items():
            if isinstance(value, int | float) and stage in ("fetch", "subsample", "chunk", "features"):
                totals[f"{stage}/{key}"] = totals.get(f"{stage}/{key}", 0.0) + value
    return totals


def open_record(params: Params, workspace: Path, workspace_id: str) -> Record:
    """Open the run's MLflow parent run, and close the records that killed runs of this workspace left open.

    Raises:
        UserError: MLflow cannot be used. From here on, that costs a warning.
    """
    uri, experiment_id = tracking.init_tracking(params.tracking, workspace)
    tags = {tracking.WORKSPACE_TAG: workspace_id} | _prefect_tags() | _source_tags()
    name = runtime.flow_run.name or "har"
    with tracking.usable(uri):
        num_dead = tracking.end_dead_runs(experiment_id, workspace_id) + crash_dead_flow_runs(workspace_id)
        parent_id = tracking.start_parent(experiment_id, name, tags, params.model_dump(mode="json"))
    if num_dead:
        logger.warning("closed %d records of runs that were killed", num_dead)
    uri = redact(uri)
    mlflow, prefect = Background(f"MLflow at {uri}", tracking.is_outage), Background("Prefect", _is_prefect_outage)
    record = Record(
        Context(workspace=workspace),
        uri,
        experiment_id,
        tracking.TrackedRun(mlflow, parent_id),
        mlflow,
        prefect,
        tracking.SystemMetrics(parent_id, enabled=params.tracking.system_metrics),
        ProgressBars(prefect),
    )
    address = record.address
    prefect.call(lambda: create_link_artifact(key="mlflow-run", link=address, link_text="This run in MLflow"))
    return record


def _prefect_tags() -> dict[str, str]:
    run = runtime.flow_run
    url = redact(str(run.ui_url or ""))
    return {"prefect.flow_run_id": str(run.id), "prefect.flow_run_name": str(run.name), "prefect.url": url}


def _source_tags() -> dict[str, str]:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except OSError:
        commit = ""
    source = {"mlflow.source.name": "flows/har.py", "mlflow.source.type": "LOCAL"}
    return source | ({"mlflow.source.git.commit": commit} if commit else {})


def crash_dead_flow_runs(workspace_id: str) -> int:
    """Tag this flow run with its workspace, and set to Crashed those of the same workspace whose process is gone."""
    tag, own = f"workspace:{workspace_id}", runtime.flow_run.id
    with get_client(sync_client=True) as client:
        alive = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": {"type": {"any_": ALIVE}}})
        dead = [run for run in client.read_flow_runs(flow_run_filter=alive) if str(run.id) != own]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="The process was killed."), force=True)
        if own:
            client.update_flow_run(own, tags=[*runtime.flow_run.tags, tag])
    return len(dead)
