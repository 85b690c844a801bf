"""Summary of a run as one dictionary, for `--summary`, the terminal and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.plan import TestedRun, first_of_each_name, with_overrides
from flows.records import Record
from flows.state import RunState
from pipeline_lib.addresses import redact_all
from pipeline_lib.artifacts import layout, tool_versions
from pipeline_lib.params import STAGES

if TYPE_CHECKING:
    from pipeline_lib.report import ModelReport, RunReport, SweepReport


def summarise(run: RunState, record: Record) -> dict[str, Any]:
    """Return the summary as in DESIGN.md; stages that did not run are left out or null.

    `failures` has one line for each failure that did not stop the run.
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
        "report": str(report.file(run.context, layout.PAGE)) if report else None,
        "best_params": str(report.file(run.context, layout.BEST_PARAMS)) if report and run.found else None,
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
    """Return each model's test metrics; with several training runs their means, and each run's own."""
    if not run.refs["results"]:
        return {}
    by_name: dict[str, list[dict[str, Any]]] = {}
    for tested in run.evaluated_runs:
        by_name.setdefault(tested.name, []).append(_tested_row(run, record, tested))
    means = {row["model"]: row for row in _results(run)["models"]}
    return {name: _model_row(rows, means[name]) for name, rows in by_name.items()}


def _tested_row(run: RunState, record: Record, tested: TestedRun) -> dict[str, Any]:
    """Return one run's row; a fusion has no validation loss and no checkpoint."""
    trained = run.refs["train"].get(tested.key)
    return {
        "fold": tested.fold,
        "seed": tested.seed,
        "val_calibrated_loss": trained.counts["best_val_calibrated_loss"] if trained else None,
        **_read_json(run.refs["evaluate"][tested.key].file(run.context, layout.METRICS)),
        "mlflow_run_id": record.children[tested.key].id,
        "checkpoint": str(trained.file(run.context, layout.CHECKPOINT)) if trained else None,
    }


def _model_row(rows: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """Return one model's row; MLflow run and checkpoint are those with the lowest calibrated validation loss.

    Those of a fusion are of its first fold and seed.
    """
    if len(rows) == 1:
        return rows[0]
    best = min(rows, key=lambda row: row["val_calibrated_loss"] or 0.0)
    kept = {name: best[name] for name in ("mlflow_run_id", "checkpoint")}
    return summary["mean"] | kept | {"standard_deviation": summary["standard_deviation"], "training_runs": rows}


def _results(run: RunState) -> dict[str, Any]:
    """Return the evaluate stage's results.json: models, controls and comparisons."""
    compared = run.refs["results"].get(None)
    results: dict[str, Any] = _read_json(compared.file(run.context, layout.RESULTS)) if compared else {}
    return results


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def describe_report(run: RunState, record: Record) -> RunReport:
    """Collect the contents of the report."""
    from pipeline_lib.report import RunReport

    return RunReport(
        title=run.params.report.title,
        summary=summarise(run, record),
        params=redact_all(run.params.model_dump(mode="json")),
        quarantined=run.quarantined_videos(),
        models=[_describe_model(run, tested) for tested in first_of_each_name(run.evaluated_runs)],
        tools=tool_versions(),
        sweeps=list(_describe_sweeps(run)),
        best_params=_best_params(run) if run.found else None,
        failures=list(run.failures),
    )


def _best_params(run: RunState) -> dict[str, Any]:
    """Return the run's parameters with the best hyper-parameters found; secrets in addresses are redacted."""
    train, sweep = with_overrides(run.params.train, run.found), run.params.sweep.model_copy(update={"enabled": False})
    values: dict[str, Any] = run.params.model_copy(update={"train": train, "sweep": sweep}).model_dump(mode="json")
    return redact_all(values)


def _describe_sweeps(run: RunState) -> Iterator[SweepReport]:
    from pipeline_lib.report import SweepReport

    if "sweep" not in run.results:
        return
    for model in run.params.sweep.models:
        ref = run.refs["sweep"][model]
        folder = ref.checkout(run.context)
        yield SweepReport(model, ref.counts, _read_json(folder / layout.BEST_TRIAL), _read_json(folder / layout.IMPORTANCE))


def _describe_model(run: RunState, tested: TestedRun) -> ModelReport:
    from pipeline_lib.report import ModelReport

    evaluated = run.refs["evaluate"][tested.key].checkout(run.context)
    trained, drawn = (run.refs[stage].get(tested.key) for stage in ("train", "heatmaps"))
    return ModelReport(
        name=tested.name,
        label=tested.label,
        metrics=_read_json(evaluated / layout.METRICS),
        history=_read_json(trained.file(run.context, layout.HISTORY)) if trained else (),
        evaluation=evaluated,
        heatmaps=drawn.checkout(run.context) if drawn else None,
    )
