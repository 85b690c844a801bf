"""Terminal output of `har run`: progress bars, one line a finished stage, results tables."""

from __future__ import annotations

import logging
import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from tasks import progress

if TYPE_CHECKING:
    from flows.execution import StageResult
    from pipeline_lib.report.overview import Overview

PLAIN_WIDTH = 120
"""Columns where output is not a terminal; wide enough for the results table."""

SIGNIFICANT = 0.05
"""Holm-adjusted p below which a difference is printed where not all fit."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
IN_BYTES = ("fetch", "verify", "upload", "download")
"""Stages whose progress is counted in bytes."""
CACHE_LABELS = {"hit": "cached", "miss": "computed", "partial": "partly cached"}


def quiet_prefect() -> None:
    """Show only the project's own warnings and errors on the terminal; Prefect keeps its log lines for its pages."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_ours)
    logging.getLogger("pipeline_lib").setLevel(logging.INFO)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith(("pipeline_lib", "tasks", "flows")) and record.levelno >= logging.WARNING


def say(line: str) -> None:
    """Print one line above the progress bars."""
    console.print(line, markup=False, soft_wrap=True)


def say_stage(stage: str, result: StageResult) -> None:
    """Print a finished stage: cache state, seconds and counts."""
    counts = ", ".join(f"{value:,} {key}" for key, value in _totals(result).items())
    say(f"{stage:<10} {CACHE_LABELS[result.cache]:<14} {result.seconds:7.1f} s   {counts}{_busy(result)}".rstrip())


def _busy(result: StageResult) -> str:
    """Return the share of the shards' time that each step was busy. Steps overlap, and so do shards on a GPU."""
    seconds = Counter[str]()
    for ref in result.refs:
        seconds.update(ref.counts.get("busy_seconds", {}) if ref.made else {})
    whole = seconds.pop("all", 0.0)
    if not whole:
        return ""
    shares = (f"{step.replace('_', ' ')} {value / whole:.0%}" for step, value in seconds.items())
    return f" ({', '.join(shares)})"


def _totals(result: StageResult) -> dict[str, int]:
    shown = ("classes", "videos", "clips", "frames", "quarantined", "epochs", "successes", "failures")
    totals: dict[str, int] = {}
    is_chunk = {ref.stage for ref in result.refs} == {"chunk"}
    refs = result.refs[:1] if is_chunk else result.refs  # folds have the same videos
    for ref in refs:
        for key in shown:
            value = ref.counts.get(key, 0)
            totals[key] = totals.get(key, 0) + (sum(value.values()) if isinstance(value, dict) else value)
    return {key: value for key, value in totals.items() if value}


@contextmanager
def show_progress() -> Iterator[None]:
    """Show progress bars of running stages inside the block; only on a terminal."""
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        stop = progress.listen(_Bars(bars).show)
        try:
            yield
        finally:
            stop()


class _Bars:
    """One progress bar a stage; thread-safe."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._ids: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def show(self, stage: str, done: float, total: float | None) -> None:
        with self._lock:
            if stage not in self._ids:
                self._ids[stage] = self._bars.add_task(stage, total=total, amount="", visible=False)
            bar = self._bars.tasks[self._bars.task_ids.index(self._ids[stage])]
            is_running = done > 0 and (total is None or done < total)
            amount = _megabytes(done, total, bar.speed) if stage in IN_BYTES else _count(done, total)
            self._bars.update(bar.id, completed=done, total=total, amount=amount, visible=is_running)


def _count(done: float, total: float | None) -> str:
    return f"{done:,.0f} of {total:,.0f}" if total else f"{done:,.0f}"


def _megabytes(done_bytes: float, total_bytes: float | None, bytes_per_second: float | None) -> str:
    rate = f", {bytes_per_second / 1e6:,.1f} MB/s" if bytes_per_second else ""
    return f"{_count(done_bytes / 1e6, total_bytes / 1e6 if total_bytes else None)} MB{rate}"


def say_summary(summary: Mapping[str, Any], workspace: Path) -> None:
    """Print the results tables, and where the report and MLflow's records are.

    Args:
        summary: the run's.
        workspace: the folder of the run's workspace on this machine.
    """
    if summary.get("results"):
        # Its package draws, and loads SciPy for it: more than a second that `har down` need not take.
        from pipeline_lib.report.overview import fusions_overview, pairs_overview, results_overview

        _say_table(results_overview(summary["results"]))
        if summary["results"]["pairs"]:
            _say_pairs(pairs_overview(summary["results"]), summary["results"]["pairs"])
        if summary["results"].get("fusions"):
            _say_table(fusions_overview(summary["results"]))
    if leaked := summary["dataset"].get("cut", {}).get("leaked"):
        say(f"leak        {leaked} test videos share their group with a training video, as in the tutorial's code")
    if summary.get("report"):
        say(f"report      {summary['report']}")
    if summary.get("best_params"):
        say(f"best        {summary['best_params']}  (a parameter file for har run)")
    from tasks.mlflow.tracking import sqlite_uri

    uri = summary["mlflow"]["tracking_uri"]
    is_here = uri == sqlite_uri(workspace)
    option = "" if workspace == Path("workspace").absolute() else f" --workspace {shlex.quote(str(workspace))}"
    say(f"MLflow      {uri}" + (f"  (har up{option} shows it in a browser)" if is_here else ""))


def _say_pairs(overview: Overview, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Print the paired tests as a table, or only the significant ones if it is wider than the terminal."""
    unbounded = console.options.update(max_width=sys.maxsize)
    if console.measure(_table(overview), options=unbounded).maximum <= console.width:
        _say_table(overview)
        return
    clear = [pair for pair in pairs if pair["p_holm"] < SIGNIFICANT]
    say(f"\n{len(pairs)} paired tests of video accuracy, {len(clear)} significant after Holm; the report has all")
    for pair in clear:
        names, points = f"{pair['first']} \u2212 {pair['second']}", 100 * pair["difference"]
        say(f"  {names}: {points:+.1f} pp [{pair['p_holm']:.2g}]")


def _say_table(overview: Overview) -> None:
    say(f"\n{overview.title}")
    console.print(_table(overview))


def _table(overview: Overview) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in overview.headings:
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for row in overview.models:
        table.add_row(*map(escape, row))
    for row in overview.references:
        table.add_row(*map(escape, row), style="dim")
    return table
