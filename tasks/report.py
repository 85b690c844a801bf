"""report: the page that shows a run."""

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
    """A report tells of one run, its cache hits and durations included, so it belongs to that run alone."""
    return Recipe("report", VERSION, {"run": run_id})


@stage(recipe)
def report(directory: Path, context: Context, run: RunReport, run_id: str) -> Mapping[str, Any]:
    """Write `index.html`, which holds all it shows, and `best.yaml`."""
    from pipeline_lib.report import write_report

    return write_report(directory, run)
