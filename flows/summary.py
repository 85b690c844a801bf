"""The run in one dictionary: for `--summary`, for the table that is printed last, and for the report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline_lib.artifacts import tool_versions

if TYPE_CHECKING:
    from flows.run import Run
    from pipeline_lib.report import RunReport


def summarise(run: Run) -> dict[str, Any]:
    """Return what DESIGN.md names: dataset, stages, models, mlflow, report; parts not run are left out or null."""
    report = run.results.get("report")
    return {
        "dataset": _dataset(run),
        "stages": {
            stage: {"cache": result.cache, "seconds": round(result.seconds, 3)} for stage, result in run.results.items()
        },
        "models": _models(run),
        "mlflow": {"tracking_uri": run.record.tracking_uri, "parent_run_id": run.record.parent_run_id},
        "report": str(report.refs[0].directory(run.context) / "index.html") if report else None,
    }


def _dataset(run: Run) -> dict[str, Any]:
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


def _models(run: Run) -> dict[str, Any]:
    models: dict[str, Any] = {}
    if "evaluate" not in run.results:
        return models
    refs = zip(run.params.train.models, run.results["train"].refs, run.results["evaluate"].refs, strict=True)
    for model, trained, evaluated in refs:
        folder = evaluated.directory(run.context)
        models[model] = json.loads((folder / "metrics.json").read_text(encoding="utf-8")) | {
            "mlflow_run_id": run.record.children[model],
            "checkpoint": str(trained.directory(run.context) / "checkpoint.safetensors"),
        }
    return models


def describe_report(run: Run) -> RunReport:
    """Gather what the report shows."""
    from pipeline_lib.report import ModelReport, RunReport
    from pipeline_lib.tables import read_videos

    models = []
    refs = zip(
        run.params.train.models,
        run.results["train"].refs,
        run.results["evaluate"].refs,
        run.results["heatmaps"].refs,
        strict=True,
    )
    for model, trained, evaluated, drawn in refs:
        folder = evaluated.directory(run.context)
        models.append(
            ModelReport(
                name=model,
                metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
                history=json.loads((trained.directory(run.context) / "history.json").read_text(encoding="utf-8")),
                evaluation=folder,
                heatmaps=drawn.directory(run.context),
            )
        )
    videos = read_videos(ref.directory(run.context) for ref in run.results["subsample"].refs)
    return RunReport(
        title=run.params.report.title,
        summary=summarise(run),
        params=run.params.model_dump(mode="json"),
        quarantined=videos.loc[videos["reason"].notna(), ["video", "reason", "stderr"]].fillna(""),
        models=models,
        tools=tool_versions(),
    )
