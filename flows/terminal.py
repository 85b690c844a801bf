"""What `har run` prints: a bar for what is under way, a line for each stage done, a table at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from tasks import progress

if TYPE_CHECKING:
    from flows.run import StageResult

console = Console(highlight=False)
WORDS = {"hit": "from artifacts", "miss": "made", "partial": "partly made"}


def quiet_prefect() -> None:
    """Keep Prefect's own log lines for its pages, and a warning's one line for the terminal: `har` says what matters."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_ours)
    logging.getLogger("pipeline_lib").setLevel(logging.INFO)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith(("pipeline_lib", "tasks", "flows")) and record.levelno >= logging.WARNING


def say(line: str) -> None:
    """Print one line above the bars."""
    console.print(line, markup=False, soft_wrap=True)


def say_stage(stage: str, result: StageResult) -> None:
    """Print a finished stage: how it was had, how long that took, and how much it holds."""
    counts = ", ".join(f"{value:,} {key}" for key, value in _totals(result).items())
    say(f"{stage:<10} {WORDS[result.cache]:<14} {result.seconds:7.1f} s   {counts}")


def _totals(result: StageResult) -> dict[str, int]:
    shown = ("classes", "videos", "clips", "frames", "quarantined", "epochs", "successes", "failures")
    totals: dict[str, int] = {}
    for ref in result.refs:
        for key in shown:
            value = ref.counts.get(key, 0)
            totals[key] = totals.get(key, 0) + (sum(value.values()) if isinstance(value, dict) else value)
    return {key: value for key, value in totals.items() if value}


@contextmanager
def show_progress() -> Iterator[None]:
    """Show bars for the stages under way while the block runs; only on a terminal."""
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
    """Keeps one bar a stage; progress arrives from several threads."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._ids: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def show(self, stage: str, done: float, total: float | None) -> None:
        with self._lock:
            if stage not in self._ids:
                self._ids[stage] = self._bars.add_task(stage, total=total, amount="", visible=False)
            bar = self._bars.tasks[self._bars.task_ids.index(self._ids[stage])]
            under_way = done > 0 and (total is None or done < total)
            amount = _megabytes(done, total, bar.speed) if stage == "fetch" else _count(done, total)
            self._bars.update(bar.id, completed=done, total=total, amount=amount, visible=under_way)


def _count(done: float, total: float | None) -> str:
    return f"{done:,.0f} of {total:,.0f}" if total else f"{done:,.0f}"


def _megabytes(done_bytes: float, total_bytes: float | None, bytes_per_second: float | None) -> str:
    rate = f", {bytes_per_second / 1e6:,.1f} MB/s" if bytes_per_second else ""
    return f"{_count(done_bytes / 1e6, total_bytes / 1e6 if total_bytes else None)} MB{rate}"


def say_summary(summary: Mapping[str, Any]) -> None:
    """Print the results as a table, and where to look on."""
    for model_rows in filter(None, [summary.get("models")]):
        table = Table(
            "model", "frame", "clip", "video", "on the actor", title="accuracy on the test part", title_justify="left"
        )
        for model, row in model_rows.items():
            table.add_row(model, *(_percent(row[f"{unit}_accuracy"]) for unit in ("frame", "clip", "video")), _pointing(row))
        first = next(iter(model_rows.values()))
        chance = _percent(first["chance"])
        table.add_row("chance", chance, chance, chance, _percent((first.get("pointing") or {}).get("chance")), style="dim")
        table.add_row("always the commonest class", "-", _percent(first["majority_class"]), "-", "-", style="dim")
        console.print(table)
    if summary.get("report"):
        say(f"report      {summary['report']}")
    say(f"MLflow      {summary['mlflow']['tracking_uri']}  (har up shows it in a browser)")


def _pointing(row: Mapping[str, Any]) -> str:
    return _percent((row.get("pointing") or {}).get("accuracy"))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
