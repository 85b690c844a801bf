"""Times two ways of doing the same, in turns, so that a machine that is slow for a while is slow for both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """How fast the usual way and ours did the same work, once per repeat."""

    subject: str
    unit: str
    usual: tuple[float, ...]
    """Units of work per second."""
    ours: tuple[float, ...]

    def ratios(self) -> list[float]:
        """Return how many times faster ours was, in each repeat."""
        return [ours / usual for ours, usual in zip(self.ours, self.usual, strict=True)]


def compare(
    subject: str,
    unit: str,
    amount: int,
    *,
    usual: Callable[[], object],
    ours: Callable[[], object],
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Let both do `amount` units of work `repeats` times; who goes first alternates. Both must be warmed up.

    `clock` tells the seconds that count.
    """
    rates: dict[Callable[[], object], list[float]] = {usual: [], ours: []}
    for repeat in range(repeats):
        for way in (usual, ours) if repeat % 2 == 0 else (ours, usual):
            rates[way].append(amount / _seconds(way, clock))
    return Comparison(subject, unit, tuple(rates[usual]), tuple(rates[ours]))


def _seconds(way: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    way()
    return clock() - started


def spread(values: list[float] | tuple[float, ...]) -> str:
    """Return `lowest - median - highest`, to three digits."""
    return " – ".join(f"{value:.3g}" for value in (min(values), statistics.median(values), max(values)))
