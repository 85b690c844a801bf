"""The run in one dictionary: for `--summary`, for the table that is printed last, and for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.plan import TrainingRun, first_of_each_name, with_overrides
from flows.records import Record
from flows.state import RunState
from pipeline_lib.addresses import redact_all
from pipeline_lib.artifacts import layout, tool_versions
from pipeline_lib.params import STAGES

if TYPE_CHECKING:
    from pipeline_lib.report import ModelReport, RunReport, SweepReport


def summarise(run: RunState, record: Record) -> dict[str, Any]:
    """Return what DESIGN.md names: dataset, stages, models, mlflow, report; parts not run are left out or null.

    `failures` has a line for each failure that left the rest of the run going.
    """
    report = run.refs["report"].get(None)
    return {
        "dataset": _dataset(run),
        "stages": {
            stage: {"cache": run.results[stage].cache, "seconds": round(run.results[stage].seconds, 3)}
            for stage in STAGES
            if stage in run.results
        },
        "models": _models(run, record),
        "results": _results(run),
        "failures": list(run.failures),
        "mlflow": {"tracking_uri": record.tracking_uri, "parent_run_id": record.parent_run_id},
        "report": str(report.directory(run.context) / layout.PAGE) if report else None,
        "best_params": str(report.directory(run.context) / layout.BEST_PARAMS) if report and run.found else None,
    }


def _dataset(run: RunState) -> dict[str, Any]:
    dataset: dict[str, Any] = {}
    if "fetch" in run.results:
        counts = run.results["fetch"].refs[0].counts
        dataset |= {"classes": counts["classes"], "videos": counts["videos"]}
    if "subsample" in run.results:
        dataset["quarantined"] = sum(ref.counts["quarantined"] for ref in run.results["subsample"].refs)
    if "chunk" in run.results:
        counts = run.results["chunk"].refs[0].counts
        dataset |= {"clips": counts["clips"], "protocol": run.params.chunk.protocol, "cut": counts}
    return dataset


def _models(run: RunState, record: Record) -> dict[str, Any]:
    """Return each model's test metrics, means over its training_runs where there are several, and each training_run's own."""
    if not run.refs["results"]:
        return {}
    by_name: dict[str, list[dict[str, Any]]] = {}
    for training_run in run.evaluated_runs:
        trained = run.refs["train"][training_run.key]
        row = _read_json(run.refs["evaluate"][training_run.key].directory(run.context) / layout.METRICS) | {
            "mlflow_run_id": record.children[training_run.key].id,
            "checkpoint": str(trained.directory(run.context) / layout.CHECKPOINT),
        }
        place = {
            "fold": training_run.fold,
            "seed": training_run.seed,
            "val_calibrated_loss": trained.counts["best_val_calibrated_loss"],
        }
        by_name.setdefault(training_run.name, []).append(place | row)
    means = {row["model"]: row for row in _results(run)["models"]}
    return {name: _model(training_runs, means[name]) for name, training_runs in by_name.items()}


def _model(training_runs: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """Return one model's row; run and checkpoint are those of the training_run that did best on its validation split."""
    if len(training_runs) == 1:
        return training_runs[0]
    best = min(training_runs, key=lambda training_run: training_run["val_calibrated_loss"])
    kept = {name: best[name] for name in ("mlflow_run_id", "checkpoint")}
    return summary["mean"] | kept | {"standard_deviation": summary["standard_deviation"], "training_runs": training_runs}


def _results(run: RunState) -> dict[str, Any]:
    """Return models, controls and comparisons as the evaluate stage wrote them."""
    compared = run.refs["results"].get(None)
    results: dict[str, Any] = _read_json(compared.directory(run.context) / layout.RESULTS) if compared else {}
    return results


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def describe_report(run: RunState, record: Record) -> RunReport:
    """Gather what the report shows."""
    from pipeline_lib.report import RunReport

    return RunReport(
        title=run.params.report.title,
        summary=summarise(run, record),
        params=redact_all(run.params.model_dump(mode="json")),
        quarantined=run.lost_videos(),
        models=[_describe_model(run, training_run) for training_run in first_of_each_name(run.evaluated_runs)],
        tools=tool_versions(),
        sweeps=list(_describe_sweeps(run)),
        best_params=_best_params(run) if run.found else None,
        failures=list(run.failures),
    )


def _best_params(run: RunState) -> dict[str, Any]:
    """Return the run's parameters with what the sweep found, ready to run but for secrets in addresses."""
    train, sweep = with_overrides(run.params.train, run.found), run.params.sweep.model_copy(update={"enabled": False})
    values: dict[str, Any] = run.params.model_copy(update={"train": train, "sweep": sweep}).model_dump(mode="json")
    return redact_all(values)


def _describe_sweeps(run: RunState) -> Iterator[SweepReport]:
    from pipeline_lib.report import SweepReport

    if "sweep" not in run.results:
        return
    for model in run.params.sweep.models:
        ref = run.refs["sweep"][model]
        folder = ref.directory(run.context)
        yield SweepReport(model, ref.counts, _read_json(folder / layout.BEST_TRIAL), _read_json(folder / layout.IMPORTANCE))


def _describe_model(run: RunState, training_run: TrainingRun) -> ModelReport:
    from pipeline_lib.report import ModelReport

    trained, evaluated = (run.refs[stage][training_run.key].directory(run.context) for stage in ("train", "evaluate"))
    drawn = run.refs["heatmaps"].get(training_run.key)
    return ModelReport(
        name=training_run.name,
        label=training_run.label,
        metrics=_read_json(evaluated / layout.METRICS),
        history=_read_json(trained / layout.HISTORY),
        evaluation=evaluated,
        heatmaps=drawn.directory(run.context) if drawn else None,
    )
