"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Headline:
    """One model's share of test videos right; fractions."""

    model: str
    value: float
    low: float | None
    high: float | None
    spread: str
    """`95 % interval 94.6 to 100 %`, or the deviation over folds and seeds."""
    is_reference: bool


def headlines(results: Mapping[str, Any], trained: Container[str]) -> list[Headline]:
    """Return the models of `results.json` by falling video accuracy, and last, as references, those not `trained` here."""
    rows = [_headline(row, row["model"] not in trained) for row in results["models"]]
    return sorted(rows, key=lambda row: (row.is_reference, -row.value))


def _headline(row: Mapping[str, Any], is_reference: bool) -> Headline:
    value, deviation = row["mean"]["video_accuracy"], row["standard_deviation"].get("video_accuracy")
    low, high = row["intervals"].get("video_accuracy", (None, None))
    spread = ""
    if deviation is not None:
        low, high = max(0.0, value - deviation), min(1.0, value + deviation)
        spread = f"\u00b1 {100 * deviation:.1f}"
    elif low is not None:
        spread = f"{100 * low:.0f} to {100 * high:.0f}"
    return Headline(row["model"].replace("_", " "), value, low, high, spread, is_reference)


def percent(fraction: float | None) -> str:
    """Return a fraction as people read it: 0.8751 is `87.5 %`; an unknown one is a dash."""
    if fraction is None or math.isnan(fraction):
        return "\u2013"
    return f"{100 * fraction:.1f}\u202f%"


def decimal(value: float | None) -> str:
    """Return a number with two decimals, its minus a minus; an unknown one is a dash."""
    return "\u2013" if value is None or math.isnan(value) else f"{value:.2f}".replace("-", "\u2212")


def duration(seconds: float) -> str:
    """Return seconds as people read them: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, whole_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {whole_minutes} min"
    return f"{minutes} min {whole_seconds} s" if minutes else f"{whole_seconds} s"
