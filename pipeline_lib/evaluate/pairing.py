"""Paired tests between two models over groups of videos, and Holm's correction."""

# V videos, G groups, R sign flips

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import binomtest

MCNEMAR, SIGN_FLIP = "exact McNemar", "sign flips of groups"

MAX_BLOCK_SIGNS = 2**22
"""Random signs per block; bounds memory."""

ROUNDING = 1e-9
"""Sums that differ by less are considered equal."""


def paired_test(difference_V: np.ndarray, group_V: np.ndarray, *, flips: int, seed: int) -> tuple[str, float]:
    """Return the name and the two-sided p-value of a test of the null hypothesis that both models are equally accurate.

    `difference_V` is the first model's correctness minus the second's, between -1 and 1. Under the null hypothesis the sign of
    a group's sum of differences is random. If every group is a single video and all differences are -1, 0 or 1, this is the
    exact McNemar test. Otherwise it is a sign-flip permutation test over groups, with all flips if there are at most `flips`
    of them and `flips` random ones if there are more.
    """
    sum_G = pd.Series(difference_V).groupby(np.asarray(group_V)).sum().to_numpy()
    if len(sum_G) == len(difference_V) and np.isin(sum_G, (-1, 0, 1)).all():
        num_first, num_second = int((sum_G == 1).sum()), int((sum_G == -1).sum())
        discordant = num_first + num_second
        return MCNEMAR, float(binomtest(num_first, discordant).pvalue) if discordant else 1.0
    return SIGN_FLIP, _sign_flip_p(sum_G[np.abs(sum_G) > ROUNDING], flips, seed)


def _sign_flip_p(sum_G: np.ndarray, flips: int, seed: int) -> float:
    """Return the fraction of flips at least as extreme as the observation, which counts as one of them: p is never 0."""
    observed = abs(sum_G.sum()) - ROUNDING
    if 2 ** len(sum_G) <= flips:
        signs_RG = np.array(list(itertools.product((-1, 1), repeat=len(sum_G))))
        return float((np.abs(signs_RG @ sum_G) >= observed).mean())
    extreme = sum(int((np.abs(signs_RG @ sum_G) >= observed).sum()) for signs_RG in _random_signs(len(sum_G), flips, seed))
    return (extreme + 1) / (flips + 1)


def _random_signs(num_groups: int, flips: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    block = max(1, MAX_BLOCK_SIGNS // num_groups)
    for first in range(0, flips, block):
        yield 2.0 * rng.integers(0, 2, (min(block, flips - first), num_groups), dtype=np.int8) - 1


def holm(p_values: list[float]) -> list[float]:
    """Return Holm-adjusted p-values, which control the family-wise error rate."""
    p_N = np.array(p_values)
    order_N = p_N.argsort(kind="stable")
    adjusted_N = np.empty_like(p_N)
    adjusted_N[order_N] = np.minimum(np.maximum.accumulate(p_N[order_N] * np.arange(len(p_N), 0, -1)), 1)
    return adjusted_N.tolist()
