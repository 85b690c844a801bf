"""What a run leaves in MLflow and Prefect: parent and child runs, manifests, tables, links, progress."""

from __future__ import annotations

import json
import logging
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import runtime
from prefect.artifacts import create_link_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows import terminal
from flows.cells import Cell, best_cell
from flows.services import mlflow_address
from pipeline_lib.errors import UserError
from pipeline_lib.params import Params
from tasks import progress, registry, tracking
from tasks.stage import Context, Ref

if TYPE_CHECKING:
    from flows.execution import StageResult
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
    """The records of one run."""

    context: Context
    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    system_metrics: tracking.SystemMetrics
    children: dict[tuple[str, int, int], str] = field(default_factory=dict)
    """The MLflow run of each cell, by its key."""
    sweeps: dict[str, str] = field(default_factory=dict)
    """The MLflow run of each model's sweep, under which its trials are."""
    bars: ProgressBars | None = None

    @property
    def address(self) -> str:
        """Where a browser shows the parent run, once an MLflow server is up."""
        base = self.tracking_uri if self.tracking_uri.startswith("http") else mlflow_address(self.context.workspace)
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.parent_run_id}"

    def open_child(self, cell: Cell, params: Params) -> str:
        """Open a cell's own MLflow run."""
        sections = params.model_dump(mode="json", include={"chunk", "finetune", "features"})
        values = {"train": cell.params.recipe()} | sections
        values["chunk"]["split"] = cell.split
        tags = {"model": cell.name, "split": str(cell.split), "seed": str(cell.seed), "stage": "train"}
        self.children[cell.key] = tracking.start_child(self.parent_run_id, cell.label, tags, values)
        return self.children[cell.key]

    def open_sweep(self, model: str) -> str:
        """Open the MLflow run that a sweep's trials go under."""
        tags = {"model": model, "stage": "sweep"}
        self.sweeps[model] = tracking.start_child(self.parent_run_id, f"sweep {model}", tags, {})
        return self.sweeps[model]

    def log_stage(self, run: Run, stage: str, result: StageResult) -> None:
        """Record a finished stage, whether it was made or answered from artifacts."""
        terminal.say_stage(stage, result)
        manifests = [ref.model_dump() | {"params": _params_of(self.context, ref)} for ref in result.refs]
        tracking.log_json(self.parent_run_id, manifests, f"manifests/{stage}.json")
        tracking.set_tags(self.parent_run_id, {f"cache.{stage}": result.cache})
        tracking.log_metrics(self.parent_run_id, {f"seconds/{stage}": result.seconds} | _counts(stage, result))
        log = getattr(self, f"_log_{stage}", None)
        if log:
            log(run, result)

    def _log_subsample(self, run: Run, result: StageResult) -> None:
        from pipeline_lib.tables import read_videos

        videos = read_videos(ref.directory(self.context) for ref in result.refs)
        lost = videos.loc[videos["reason"].notna(), ["video", "reason", "stderr"]].fillna("")
        tracking.log_rows(self.parent_run_id, lost, "quarantine.json")

    def _log_chunk(self, run: Run, result: StageResult) -> None:
        splits = run.params.chunk.splits
        for split, ref in zip(splits, result.refs, strict=True):
            name = "dataset" if len(splits) == 1 else f"dataset/split {split}"
            tracking.log_files(self.parent_run_id, [ref.directory(self.context) / "clips.parquet"], name)
            self._log_dataset([self.parent_run_id], ref)

    def _log_dataset(self, run_ids: list[str], clips: Ref) -> None:
        from pipeline_lib.tables import read_clips

        tracking.log_dataset(run_ids, read_clips(clips.directory(self.context)), "clips", clips.content_key)

    def _log_sweep(self, run: Run, result: StageResult) -> None:
        for run_id, ref in zip(self.sweeps.values(), result.refs, strict=True):
            tracking.log_folder(run_id, ref.directory(self.context), "sweep")
            tracking.set_tags(run_id, {"artifact_key": ref.key, "cache.sweep": "miss" if ref.made else "hit"})

    def _log_train(self, run: Run, result: StageResult) -> None:
        for cell, ref in zip(run.cells, result.refs, strict=True):
            run_id, folder = self.children[cell.key], ref.directory(self.context)
            history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
            if not ref.made:  # else every epoch was logged as it ended
                for record in history:
                    tracking.log_epoch(run_id, record)
            tracking.log_folder(run_id, folder, "checkpoint")
            tracking.set_tags(run_id, {"artifact_key": ref.key, "cache.train": "miss" if ref.made else "hit"})
        for split, clips in zip(run.params.chunk.splits, run.results["chunk"].refs, strict=True):
            self._log_dataset([self.children[cell.key] for cell in run.cells if cell.split == split], clips)
        self._register_best(run, result)

    def _register_best(self, run: Run, result: StageResult) -> None:
        """Log what every model needs to predict, and register the best; a run does not fail for want of it."""
        from mlflow.exceptions import MlflowException

        try:
            candidates = [self._candidate(cell, ref) for cell, ref in zip(run.cells, result.refs, strict=True)]
            registry.log_parts(self.parent_run_id, candidates)
            found = registry.register(candidates[best_cell(run.cells, [ref.counts for ref in result.refs])])
            tracking.set_tags(self.parent_run_id, {registry.VERSION: str(found.version)})
            terminal.say(f"registered {registry.describe(found)}: {registry.standing(found)}")
        except (UserError, MlflowException) as error:
            logger.warning("no model is registered: %s", error)

    def _candidate(self, cell: Cell, ref: Ref) -> registry.Candidate:
        from pipeline_lib.predict.origin import parts_of_training

        trained = self.context.store.load("train", ref.key)
        assert trained, "train artifacts of this run are there"
        tags = {"model": cell.name, "split": str(cell.split), "seed": str(cell.seed)}
        tags |= {"val_accuracy": f"{ref.counts['best_val_clip_accuracy']:.6f}"}
        tracking.set_tags(self.children[cell.key], tags)
        return registry.Candidate(self.children[cell.key], parts_of_training(self.context.store, trained, cell.label), tags)

    def _log_evaluate(self, run: Run, result: StageResult) -> None:
        for cell, ref in zip(run.cells, result.refs, strict=False):
            folder = ref.directory(self.context)
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            maps = folder / "maps.json"
            attention = json.loads(maps.read_text(encoding="utf-8"))["measures"] if maps.is_file() else {}
            tracking.log_metrics(self.children[cell.key], _test_metrics(metrics, attention))
            tracking.log_folder(self.children[cell.key], folder, "evaluation")
        for split, ref in zip(run.params.chunk.splits, result.refs[len(run.cells) :], strict=False):
            tracking.log_folder(self.parent_run_id, ref.directory(self.context), f"controls/split {split}")
        self._log_results(result.refs[-1].directory(self.context))

    def _log_results(self, folder: Path) -> None:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        tracking.log_folder(self.parent_run_id, folder, "results")
        tracking.log_metrics(self.parent_run_id, _parent_metrics(results))
        columns = ("model", "num_cells", *SCORES)
        table = [{name: ({**row, **row["mean"]}).get(name) for name in columns} for row in results["models"]]
        create_table_artifact(key="results", table=table, description="Accuracy on the test part, mean over splits and seeds")

    def _log_heatmaps(self, run: Run, result: StageResult) -> None:
        for index, ref in zip(run.drawn, result.refs, strict=True):
            tracking.log_folder(self.children[run.cells[index].key], ref.directory(self.context), "heatmaps")

    def _log_report(self, run: Run, result: StageResult) -> None:
        tracking.log_folder(self.parent_run_id, result.refs[0].directory(self.context), "report")
        page = f"{self.address}/artifacts/report/index.html"
        create_link_artifact(key="report", link=page, link_text="This run's report")
        tracking.set_tags(self.parent_run_id, {DESCRIPTION: f"[Report](#{page.partition('#')[2]})"})

    def close(self, status: str, run: Run) -> None:
        """Close every MLflow run as FINISHED, FAILED or KILLED."""
        self.system_metrics.stop()
        if self.bars:
            self.bars.close()
        if run.summary:
            tracking.log_json(self.parent_run_id, run.summary, "summary.json")
        for run_id in (*self.children.values(), *self.sweeps.values(), self.parent_run_id):
            tracking.end_run(run_id, status)


class ProgressBars:
    """One Prefect progress artifact a stage, brought up to date at whole percents."""

    def __init__(self) -> None:
        """Listen to the stages' progress."""
        self._artifacts: dict[str, Any] = {}
        self._percent: dict[str, int] = {}
        self.close = progress.listen(self._show)

    def _show(self, stage: str, done: float, total: float | None) -> None:
        percent = int(100 * min(1.0, done / total)) if total else 0
        if not total or percent // 5 <= self._percent.get(stage, -1) // 5:
            return
        self._percent[stage] = percent
        self._write(stage, percent)

    def _write(self, stage: str, percent: int) -> None:
        if stage in self._artifacts:
            update_progress_artifact(self._artifacts[stage], float(percent))
        else:
            self._artifacts[stage] = create_progress_artifact(float(percent), key=f"progress-{stage}", description=stage)


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
    """Open the run's MLflow parent run, and close the records that killed runs of this workspace left open."""
    uri, experiment_id = tracking.init_tracking(params.tracking, workspace)
    num_dead = tracking.end_dead_runs(experiment_id, workspace_id) + crash_dead_flow_runs(workspace_id)
    if num_dead:
        logger.warning("closed %d records of runs that were killed", num_dead)
    name = runtime.flow_run.name or "har"
    tags = {tracking.WORKSPACE_TAG: workspace_id} | _prefect_tags() | _source_tags()
    parent = tracking.start_parent(experiment_id, name, tags, params.model_dump(mode="json"))
    metrics = tracking.SystemMetrics(parent, enabled=params.tracking.system_metrics)
    record = Record(Context(workspace=workspace), uri, experiment_id, parent, metrics, bars=ProgressBars())
    create_link_artifact(key="mlflow-run", link=record.address, link_text="This run in MLflow")
    return record


def _prefect_tags() -> dict[str, str]:
    run = runtime.flow_run
    return {"prefect.flow_run_id": str(run.id), "prefect.flow_run_name": str(run.name), "prefect.url": str(run.ui_url or "")}


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
