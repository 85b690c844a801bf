"""Which of two models is better, judged on the videos that both were tested on."""

# V videos, G groups, R random sign flips

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

from pipeline_lib.evaluate.bootstrap import sum_by_group

MCNEMAR, SIGN_FLIP = "exact McNemar", "sign flips by group"

SIGNS_AT_ONCE = 2**22
"""Signs drawn before they are added up; bounds memory to some 40 MB."""

ROUNDING = 1e-9
"""Sums of shares may differ by this much and be the same."""


def paired_test(difference_V: np.ndarray, group_V: np.ndarray, *, flips: int, seed: int) -> tuple[str, float]:
    """Return the test's name and its two-sided p-value for "as good as each other" on these videos.

    `difference_V` is the first model's correctness less the second's, between -1 and 1, `group_V` each video's group. If the
    models are alike, the sum of each group could as well have had the other sign: videos of one group are not independent.
    Where every video is a group of its own and all differences are -1, 0 or 1, this is McNemar's exact test. Otherwise signs
    are flipped `flips` times at random.
    """
    difference_G = sum_by_group(difference_V[:, None], group_V)[:, 0]
    if len(difference_G) == len(difference_V) and np.isin(difference_G, (-1, 0, 1)).all():
        num_first, num_second = int((difference_G == 1).sum()), int((difference_G == -1).sum())
        discordant = num_first + num_second
        return MCNEMAR, float(binomtest(num_first, discordant).pvalue) if discordant else 1.0
    return SIGN_FLIP, _sign_flip_p(difference_G[difference_G != 0], flips, seed)


def _sign_flip_p(difference_G: np.ndarray, flips: int, seed: int) -> float:
    """Count the flips that are at least as extreme as what was seen, itself among them: p is never 0."""
    rng = np.random.default_rng(seed)
    seen = abs(difference_G.sum()) - ROUNDING
    block = max(1, SIGNS_AT_ONCE // max(1, len(difference_G)))
    extreme = 1
    for first in range(0, flips, block):
        signs_RG = 2.0 * rng.integers(0, 2, (min(block, flips - first), len(difference_G)), dtype=np.int8) - 1
        extreme += int((np.abs(signs_RG @ difference_G) >= seen).sum())
    return extreme / (flips + 1)


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's adjusted p-values: rejecting those below alpha errs in any of them with probability alpha at most."""
    p_N = np.array(p_values)
    order_N = p_N.argsort(kind="stable")
    adjusted_N = np.empty_like(p_N)
    adjusted_N[order_N] = np.minimum(np.maximum.accumulate(p_N[order_N] * np.arange(len(p_N), 0, -1)), 1)
    return adjusted_N.tolist()
