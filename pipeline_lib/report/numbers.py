"""Format numbers for people."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Headline:
    """One model's video accuracy and its spread, as fractions."""

    model: str
    value: float
    low: float | None
    high: float | None
    spread: str
    """`[80, 100]`, the 95 % CI, or `± 2.1`, the SD over folds and seeds; empty if unknown."""
    is_reference: bool


def headlines(results: Mapping[str, Any], trained: Container[str]) -> list[Headline]:
    """Return the models of `results.json` by descending video accuracy, followed by the references: those not in `trained`."""
    rows = [_headline(row, row["model"] not in trained) for row in results["models"]]
    return sorted(rows, key=lambda row: (row.is_reference, -row.value))


def _headline(row: Mapping[str, Any], is_reference: bool) -> Headline:
    value, deviation = row["mean"]["video_accuracy"], row["standard_deviation"].get("video_accuracy")
    interval = row["intervals"].get("video_accuracy")
    low, high = interval or (None, None)
    if deviation is not None:
        low, high = max(0.0, value - deviation), min(1.0, value + deviation)
    return Headline(row["model"].replace("_", " "), value, low, high, spread(deviation, interval), is_reference)


def spread(deviation: float | None, interval: Sequence[float] | None) -> str:
    """Return a fraction's SD or else its 95 % CI in percent, `± 2.1` or `[80, 100]`; empty if both are unknown."""
    if deviation is not None:
        return f"\u00b1 {100 * deviation:.1f}"
    return f"[{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else ""


def percent(fraction: float | None) -> str:
    """Return a fraction with its unit, such as `87.5 %` for 0.8751; unknown is a dash."""
    if fraction is None or math.isnan(fraction):
        return "\u2013"
    return f"{100 * fraction:.1f}\u202f%"


def decimal(value: float | None) -> str:
    """Return a number with two decimals and a typographic minus; unknown is a dash."""
    return "\u2013" if value is None or math.isnan(value) else f"{value:.2f}".replace("-", "\u2212")


def duration(seconds: float) -> str:
    """Return seconds in readable units: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, whole_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {whole_minutes} min"
    return f"{minutes} min {whole_seconds} s" if minutes else f"{whole_seconds} s"
