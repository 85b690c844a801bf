"""Which of two models is better, judged on the groups of videos that both were tested on."""

# V videos, G groups, R sign flips

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import binomtest

MCNEMAR, SIGN_FLIP = "exact McNemar", "sign flips of groups"

SIGNS_AT_ONCE = 2**22
"""Signs drawn before they are added up; bounds memory to some 40 MB."""

ROUNDING = 1e-9
"""Sums of shares may differ by this much and be the same."""


def paired_test(difference_V: np.ndarray, group_V: np.ndarray, *, flips: int, seed: int) -> tuple[str, float]:
    """Return the test's name and its two-sided p-value for "as good as each other" on these videos.

    `difference_V` is the first model's correctness less the second's, between -1 and 1. If the models are alike, a group's
    differences, which belong together, could as well have had the other sign. Where every group is one video and all
    differences are -1, 0 or 1, the distribution of their sum under flipped signs is binomial: McNemar's exact test. Otherwise
    groups' sums are flipped in all ways, or in `flips` random ones where there are more.
    """
    sum_G = pd.Series(difference_V).groupby(np.asarray(group_V)).sum().to_numpy()
    if len(sum_G) == len(difference_V) and np.isin(sum_G, (-1, 0, 1)).all():
        num_first, num_second = int((sum_G == 1).sum()), int((sum_G == -1).sum())
        discordant = num_first + num_second
        return MCNEMAR, float(binomtest(num_first, discordant).pvalue) if discordant else 1.0
    return SIGN_FLIP, _sign_flip_p(sum_G[np.abs(sum_G) > ROUNDING], flips, seed)


def _sign_flip_p(sum_G: np.ndarray, flips: int, seed: int) -> float:
    """Return the share of flips that are at least as extreme as what was seen; that is one of them, so p is never 0."""
    seen = abs(sum_G.sum()) - ROUNDING
    if 2 ** len(sum_G) <= flips:
        signs_RG = np.array(list(itertools.product((-1, 1), repeat=len(sum_G))))
        return float((np.abs(signs_RG @ sum_G) >= seen).mean())
    extreme = sum(int((np.abs(signs_RG @ sum_G) >= seen).sum()) for signs_RG in _random_signs(len(sum_G), flips, seed))
    return (extreme + 1) / (flips + 1)


def _random_signs(num_groups: int, flips: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    block = max(1, SIGNS_AT_ONCE // num_groups)
    for first in range(0, flips, block):
        yield 2.0 * rng.integers(0, 2, (min(block, flips - first), num_groups), dtype=np.int8) - 1


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's adjusted p-values: rejecting those below alpha errs in any of them with probability alpha at most."""
    p_N = np.array(p_values)
    order_N = p_N.argsort(kind="stable")
    adjusted_N = np.empty_like(p_N)
    adjusted_N[order_N] = np.minimum(np.maximum.accumulate(p_N[order_N] * np.arange(len(p_N), 0, -1)), 1)
    return adjusted_N.tolist()
