"""report: write the report page of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.artifacts import Recipe
from tasks.stage import Context, stage

if TYPE_CHECKING:
    from pipeline_lib.report import RunReport

VERSION = "report-2"


def recipe(context: Context, run: RunReport, run_id: str) -> Recipe:
    """Return the run's id: a report includes its cache hits and durations, so no other run can reuse it."""
    return Recipe("report", VERSION, {"run": run_id})


@stage(recipe)
def report(directory: Path, context: Context, run: RunReport, run_id: str) -> Mapping[str, Any]:
    """Write the self-contained `index.html`, and `best.yaml` after a sweep."""
    from pipeline_lib.report import write_report

    return write_report(directory, run)
