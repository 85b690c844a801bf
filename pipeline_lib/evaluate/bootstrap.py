"""Intervals from resampling videos: a test part as it might also have been drawn.

Whole videos are drawn, with replacement, because a video's clips and frames are right or wrong together. Videos cut from one
source are too, to a lesser degree, and are drawn singly all the same: with few sources the intervals are too narrow.
"""

# V videos, R resamples, M quantities

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TAILS = (0.025, 0.975)
"""Quantiles of the resamples that bound a 95 % percentile interval."""

DRAWS_AT_ONCE = 2**20
"""Videos drawn before they are added up; bounds memory to some 30 MB."""


def ratio_intervals(numerator_VM: np.ndarray, denominator_VM: np.ndarray, *, resamples: int, seed: int) -> list[list[float]]:
    """Return [low, high], a 95 % percentile interval, of sum(numerator) / sum(denominator) for each of the M ratios."""
    counts = _resampled_counts(len(numerator_VM), resamples, seed)
    ratio_RM = np.concatenate([(counts_RV @ numerator_VM) / (counts_RV @ denominator_VM) for counts_RV in counts])
    interval_M2: np.ndarray = np.quantile(ratio_RM, TAILS, axis=0).T
    return interval_M2.tolist()


def mean_interval(value_V: np.ndarray, *, resamples: int, seed: int) -> list[float]:
    """Return [low, high], a 95 % percentile interval of the mean over videos."""
    value_V1 = value_V.astype(np.float64)[:, None]
    return ratio_intervals(value_V1, np.ones_like(value_V1), resamples=resamples, seed=seed)[0]


def _resampled_counts(num_videos: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield, block by block, counts_RV: how often each video was drawn, as float64 so that they multiply fast and exactly."""
    rng = np.random.default_rng(seed)
    block = max(1, DRAWS_AT_ONCE // num_videos)
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        drawn_RV = rng.integers(0, num_videos, (size, num_videos)) + num_videos * np.arange(size)[:, None]
        yield np.bincount(drawn_RV.ravel(), minlength=drawn_RV.size).reshape(drawn_RV.shape).astype(np.float64)
