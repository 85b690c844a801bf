"""Confidence intervals from a cluster bootstrap: groups of videos are resampled, not videos.

Videos cut from the same footage are alike, so that they are right or wrong together; a group is drawn with all its videos,
clips and frames. The percentiles are expanded for few groups (Hesterberg 2015, "What Teachers Should Know About the
Bootstrap"): the tails are those of Student's t with G - 1 degrees of freedom, widened by sqrt(G / (G - 1)).
"""

# V videos, G groups, R resamples, M quantities

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import norm, t

CONFIDENCE = 0.95

DRAWS_AT_ONCE = 2**20
"""Groups drawn before they are added up; bounds memory to some 30 MB."""


def ratio_intervals(
    numerator_VM: np.ndarray,
    denominator_VM: np.ndarray,
    group_V: np.ndarray,
    *,
    resamples: int,
    seed: int,
    confidence: float = CONFIDENCE,
) -> list[list[float]]:
    """Return [low, high] of sum(numerator) / sum(denominator) for each of the M ratios.

    `group_V` names each video's group. Of a single group nothing can be resampled: both ends are then the ratio itself.
    """
    numerator_GM, denominator_GM = sum_by_group(numerator_VM, group_V), sum_by_group(denominator_VM, group_V)
    counts = _resampled_counts(len(numerator_GM), resamples, seed)
    ratio_RM = np.concatenate([(counts_RG @ numerator_GM) / (counts_RG @ denominator_GM) for counts_RG in counts])
    tail = tail_probability(len(numerator_GM), confidence)
    interval_M2: np.ndarray = np.quantile(ratio_RM, (tail, 1 - tail), axis=0).T
    return interval_M2.tolist()


def mean_interval(value_V: np.ndarray, group_V: np.ndarray, *, resamples: int, seed: int) -> list[float]:
    """Return [low, high], a 95 % interval of the mean over videos."""
    value_V1 = value_V.astype(np.float64)[:, None]
    return ratio_intervals(value_V1, np.ones_like(value_V1), group_V, resamples=resamples, seed=seed)[0]


def sum_by_group(value_VM: np.ndarray, group_V: np.ndarray) -> np.ndarray:
    """Return value_GM, the sums over each group's videos."""
    groups, index_V = np.unique(np.asarray(group_V, dtype=str), return_inverse=True)
    sum_GM = np.zeros((len(groups), value_VM.shape[1]))
    np.add.at(sum_GM, index_V, value_VM)
    return sum_GM


def tail_probability(num_groups: int, confidence: float) -> float:
    """Return the share of resamples to leave out on either side; for many groups (1 - confidence) / 2."""
    if num_groups == 1:
        return 0.0
    quantile = t.ppf((1 + confidence) / 2, num_groups - 1)
    return float(norm.cdf(-quantile * np.sqrt(num_groups / (num_groups - 1))))


def _resampled_counts(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield, block by block, counts_RG: how often each group was drawn, as float64 so that they multiply fast and exactly."""
    rng = np.random.default_rng(seed)
    block = max(1, DRAWS_AT_ONCE // num_groups)
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        drawn_RG = rng.integers(0, num_groups, (size, num_groups)) + num_groups * np.arange(size)[:, None]
        yield np.bincount(drawn_RG.ravel(), minlength=drawn_RG.size).reshape(drawn_RG.shape).astype(np.float64)
