"""Records of a run in MLflow and Prefect: parent and child runs, manifests, tables, links, progress."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prefect import runtime
from prefect.artifacts import create_link_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows import terminal
from flows.execution import StageResult, Work
from flows.plan import FusionRun, TrainingRun, best_training_run
from flows.service_state import mlflow_address
from flows.state import RunState
from pipeline_lib.addresses import redact
from pipeline_lib.artifacts import layout
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.params import Params
from pipeline_lib.predict.bundle import ModelBundle
from tasks import progress
from tasks.background import Background
from tasks.evaluate import RunKey
from tasks.mlflow import registry, tracking
from tasks.stage import Context, Ref

logger = logging.getLogger(__name__)

DESCRIPTION = "mlflow.note.content"
"""Tag that MLflow shows as the run's description, in Markdown."""

SCORES = ("frame_accuracy", "clip_accuracy", "video_accuracy", "video_accuracy_by_mean", "macro_f1", "calibration_error")
ENDS = ("low", "high")
"""Suffixes of the metrics of a 95 % CI."""
ALIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


@dataclass
class Record:
    """Records of one run, written to MLflow and Prefect in the background."""

    context: Context
    tracking_uri: str
    experiment_id: str
    parent: tracking.TrackedRun
    mlflow: Background
    prefect: Background
    system_metrics: tracking.SystemMetrics
    bars: ProgressBars
    children: dict[RunKey, tracking.TrackedRun] = field(default_factory=dict)
    """MLflow run of each training run and fusion."""
    sweeps: dict[str, tracking.TrackedRun] = field(default_factory=dict)
    """MLflow run of each model's sweep, the parent of its trials."""
    _ended: set[RunKey] = field(default_factory=set)
    _backbones: set[str] = field(default_factory=set)
    """Digests of the backbones logged to the parent run."""

    @property
    def parent_run_id(self) -> str:
        """Id of the MLflow parent run, which is open from the start."""
        assert self.parent.id
        return self.parent.id

    @property
    def address(self) -> str:
        """URL of the parent run, valid while an MLflow server is up."""
        base = self.tracking_uri if self.tracking_uri.startswith("http") else mlflow_address(self.context.folder)
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.parent_run_id}"

    def open_child(self, training: TrainingRun, params: Params) -> tracking.TrackedRun:
        """Open the MLflow run of a training run."""
        sections = params.model_dump(mode="json", include={"chunk", "finetune", "features"})
        values = {"train": training.params.recipe()} | sections
        values["chunk"]["fold"] = training.fold
        tags = {"model": training.name, "fold": str(training.fold), "seed": str(training.seed), "stage": "train"}
        self.children[training.key] = self.parent.open_child(training.label, tags, values)
        return self.children[training.key]

    def open_fusion(self, fused: FusionRun) -> None:
        """Open the MLflow run of a fusion."""
        tags = {"model": fused.name, "fold": str(fused.fold), "seed": str(fused.seed), "stage": "evaluate"}
        self.children[fused.key] = self.parent.open_child(fused.label, tags, {"fusion": fused.params.recipe()})

    def open_sweep(self, model: str) -> tracking.TrackedRun:
        """Open the MLflow run of a sweep, the parent of its trials."""
        tags = {"model": model, "stage": "sweep"}
        self.sweeps[model] = self.parent.open_child(f"sweep {model}", tags, {})
        return self.sweeps[model]

    def end_child(self, key: RunKey, status: str) -> None:
        """Close the MLflow run of a training run or fusion as FINISHED or FAILED."""
        self.children[key].log(tracking.end_run, status)
        self._ended.add(key)

    def log_work(self, run: RunState, work: Work, ref: Ref) -> None:
        """Record finished work, computed or cached."""
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
                self._log_evaluation(self.children[work.key], ref)
            case "controls":
                self.parent.log(tracking.log_folder, ref.checkout(self.context), f"controls/fold {work.key}")
            case "results":
                self._log_results(ref.checkout(self.context))
            case "heatmaps":
                self.children[work.key].log(tracking.log_folder, ref.checkout(self.context), "heatmaps")
            case "report":
                self._log_report(ref)

    def _log_folder(self, run: tracking.TrackedRun, ref: Ref, name: str) -> None:
        """Log an artifact to a run, and tag the run with its key and cache state."""
        run.log(tracking.log_folder, ref.checkout(self.context), name)
        run.log(tracking.set_tags, {"artifact_key": ref.key, f"cache.{ref.stage}": "miss" if ref.made else "hit"})

    def _log_quarantine(self, run: RunState) -> None:
        quarantined = run.quarantined_videos()
        rows = [{str(name): str(value) for name, value in row.items()} for row in quarantined.to_dict("records")]
        total = len(quarantined) + sum(ref.counts["videos"] for ref in run.refs["subsample"].values())
        text = f"{len(quarantined)} of {total} videos could not be decoded"
        self.prefect.call(lambda: create_table_artifact(key="quarantine", table=rows, description=text))
        self.parent.log(tracking.log_rows, quarantined, "quarantine.json")

    def _log_clips(self, run: RunState, fold: Hashable, ref: Ref) -> None:
        name = "dataset" if len(run.params.chunk.folds) == 1 else f"dataset/fold {fold}"
        self.parent.log(tracking.log_files, [ref.file(self.context, layout.CLIPS)], name)
        self.parent.log(tracking.log_dataset, ref.checkout(self.context, layout.CLIPS), "clips", ref.content_key)

    def _log_training(self, run: RunState, training: TrainingRun, ref: Ref) -> None:
        child = self.children[training.key]
        if not ref.made:  # else each epoch was logged when it ended
            for record in _read_json(ref.file(self.context, layout.HISTORY)):
                child.log(tracking.log_epoch, record)
        self._log_folder(child, ref, "checkpoint")
        clips = run.refs["chunk"][training.fold]
        child.log(tracking.log_dataset, clips.checkout(self.context, layout.CLIPS), "clips", clips.content_key)
        child.log(tracking.set_tags, _candidate_tags(training, ref))
        child.log(self._log_bundle, training, ref)

    def _log_bundle(self, child_run_id: str, training: TrainingRun, ref: Ref) -> None:
        """Log the model's input specification to the child, and its backbone to the parent unless it is there."""
        bundles = {child_run_id: self._bundle(training, ref)}
        self._backbones |= registry.log_bundles(self.parent_run_id, bundles, known=self._backbones)

    def _bundle(self, training: TrainingRun, ref: Ref) -> ModelBundle:
        from pipeline_lib.predict.provenance import bundle_of_training

        trained = self.context.store.load("train", ref.key)
        assert trained, "this run's train artifacts exist"
        return bundle_of_training(self.context.store, trained, training.label)

    def _register_best(self, parent_run_id: str, trainings: Sequence[TrainingRun], refs: Sequence[Ref]) -> None:
        """Register the best trained model."""
        best = best_training_run(trainings, [ref.counts for ref in refs])
        child_run_id = self.children[trainings[best].key].id
        if child_run_id is None:
            return
        bundle, tags = self._bundle(trainings[best], refs[best]), _candidate_tags(trainings[best], refs[best])
        found = registry.register(registry.Candidate(child_run_id, bundle, tags))
        tracking.set_tags(parent_run_id, {registry.VERSION: str(found.version)})
        terminal.say(f"registered {registry.describe(found)}: {registry.standing(found)}")

    def _log_evaluation(self, child: tracking.TrackedRun, ref: Ref) -> None:
        folder = ref.checkout(self.context)
        maps = folder / layout.MAPS
        found: dict[str, Any] = _read_json(maps) if maps.is_file() else {"kind": "attention", "measures": {}}
        measures = {f"{found['kind']}_{name}": row for name, row in found["measures"].items()}
        child.log(tracking.log_metrics, _test_metrics(_read_json(folder / layout.METRICS), measures))
        child.log(tracking.log_folder, folder, "evaluation")

    def _log_results(self, folder: Path) -> None:
        results = _read_json(folder / layout.RESULTS)
        self.parent.log(tracking.log_folder, folder, "results")
        self.parent.log(tracking.log_metrics, _parent_metrics(results))
        columns = ("model", "num_training_runs", *SCORES)
        table = [{name: ({**row, **row["mean"]}).get(name) for name in columns} for row in results["models"]]
        text = "Metrics on the test split, mean over folds and seeds"
        self.prefect.call(lambda: create_table_artifact(key="results", table=table, description=text))

    def _log_report(self, ref: Ref) -> None:
        page = f"{self.address}/artifacts/report/index.html"
        self.parent.log(tracking.log_folder, ref.checkout(self.context), "report")
        self.parent.log(tracking.set_tags, {DESCRIPTION: f"[Report](#{page.partition('#')[2]})"})
        self.prefect.call(lambda: create_link_artifact(key="report", link=page, link_text="This run's report"))

    def log_stage(self, run: RunState, stage: str, result: StageResult) -> None:
        """Record a finished stage; after training, register the best model."""
        terminal.say_stage(stage, result)
        manifests = [ref.model_dump() | {"params": _params_of(self.context, ref)} for ref in result.refs]
        self.parent.log(tracking.log_json, manifests, f"manifests/{stage}.json")
        self.parent.log(tracking.set_tags, {f"cache.{stage}": result.cache})
        self.parent.log(tracking.log_metrics, {f"seconds/{stage}": result.seconds} | _counts(stage, result))
        if stage == "train":
            trained = run.refs["train"]
            trainings = [training for training in run.training_runs if training.key in trained]
            self.parent.log(self._register_best, trainings, [trained[training.key] for training in trainings])

    def close(self, status: str, run: RunState) -> None:
        """Close all open MLflow runs as FINISHED, FAILED or KILLED, and wait until everything is written."""
        self.bars.close()
        if status == "KILLED":  # no time for queued records
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
    """One Prefect progress artifact a stage, updated in the background every 5 %."""

    def __init__(self, prefect: Background) -> None:
        """Subscribe to the stages' progress."""
        self._prefect = prefect
        self._lock = threading.Lock()
        self._artifacts: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        self.close = progress.listen(self._show)

    def _show(self, stage: str, done: float, total: float | None) -> None:
        percent = int(100 * min(1.0, done / total)) if total else 0
        with self._lock:
            is_update = bool(total) and percent // 5 > self._steps.get(stage, -1)
            if is_update:
                self._steps[stage] = percent // 5
        if is_update:
            self._prefect.call(lambda: self._write(stage, float(percent)))

    def _write(self, stage: str, percent: float) -> None:
        if stage in self._artifacts:
            update_progress_artifact(self._artifacts[stage], percent)
        else:
            self._artifacts[stage] = create_progress_artifact(percent, key=f"progress-{stage}", description=stage)


def _is_prefect_outage(error: Exception) -> bool:
    return isinstance(error, httpx.TransportError)


def _candidate_tags(training: TrainingRun, ref: Ref) -> dict[str, str]:
    accuracy = f"{ref.counts['best_val_clip_accuracy']:.6f}"
    return {
        "model": training.name,
        "fold": str(training.fold),
        "seed": str(training.seed),
        "val_accuracy": accuracy,
    }


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _test_metrics(metrics: dict[str, Any], measures: dict[str, Any]) -> dict[str, float]:
    """Return an evaluation's metrics and measures of maps as MLflow metrics; an interval becomes its two bounds."""
    metrics = metrics | {name: row["model"] for name, row in measures.items()}
    intervals = metrics["intervals"] | {name: row["interval"] for name, row in measures.items()}
    ends = {f"{name}_{end}": value for name, pair in intervals.items() for end, value in zip(ENDS, pair, strict=True)}
    flat = tracking.flatten({key: value for key, value in metrics.items() if key != "intervals"}) | ends
    return {f"test/{key.replace('.', '_')}": value for key, value in flat.items() if isinstance(value, int | float)}


def _parent_metrics(results: dict[str, Any]) -> dict[str, float]:
    """Return the run's overall metrics: means and SDs of models, means of controls, differences of claims."""
    metrics: dict[str, float] = {}
    for row in results["models"]:
        model = tracking.accepted(row["model"])
        metrics |= {f"{model}/{name}": value for name, value in row["mean"].items()}
        metrics |= {f"{model}/{name}_sd": value for name, value in row["standard_deviation"].items()}
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
    """Return the stage's counts, summed over shards, as metrics."""
    totals: dict[str, float] = {}
    for ref in result.refs:
        for key, value in tracking.flatten(ref.counts).items():
            if isinstance(value, int | float) and stage in ("fetch", "subsample", "chunk", "features"):
                totals[f"{stage}/{key}"] = totals.get(f"{stage}/{key}", 0.0) + value
    return totals


def open_record(params: Params, workspace: Workspace, workspace_id: str) -> Record:
    """Open the MLflow parent run, and close the records of killed runs of this workspace.

    Raises:
        UserError: MLflow cannot be used. Later outages only cause warnings.
    """
    uri, experiment_id = tracking.init_tracking(params.tracking, workspace.folder)
    tags = {tracking.WORKSPACE_TAG: workspace_id} | _prefect_tags() | _source_tags()
    name = runtime.flow_run.name or "har"
    with tracking.usable(uri):
        num_dead = tracking.end_dead_runs(experiment_id, workspace_id) + crash_dead_flow_runs(workspace_id)
        parent_id = tracking.start_parent(experiment_id, name, tags, params.model_dump(mode="json"))
    if num_dead:
        logger.warning("closed %d records of killed runs", num_dead)
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
    """Tag this flow run with its workspace, and set the workspace's flow runs without a process to Crashed."""
    tag, own = f"workspace:{workspace_id}", runtime.flow_run.id
    with get_client(sync_client=True) as client:
        alive = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": {"type": {"any_": ALIVE}}})
        dead = [run for run in client.read_flow_runs(flow_run_filter=alive) if str(run.id) != own]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="The process was killed."), force=True)
        if own:
            client.update_flow_run(own, tags=[*runtime.flow_run.tags, tag])
    return len(dead)
