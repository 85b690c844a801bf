"""95 % confidence intervals over groups.

A group is footage that several videos were cut from. Their results are correlated, so a test split is a sample of groups and
not of videos. The interval is a Student's t interval with a cluster-robust standard error: CR2 residuals, and the degrees of
freedom of Bell and McCaffrey (2002, "Bias Reduction in Standard Errors for Linear Regression with Multi-Stage Samples"), which
are fewer than the number of groups minus one if group sizes differ.
"""

# V videos, G groups, M quantities

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t as student

LEVEL = 0.95

HALF = 0.5
"""Pseudo-groups of mean size added to an accuracy: this many all correct, and as many all wrong."""


def ratio_intervals(
    numerator_VM: np.ndarray, denominator_VM: np.ndarray, group_V: np.ndarray, *, level: float = LEVEL
) -> list[list[float]]:
    """Return [low, high] of sum(numerator) / sum(denominator) for each of M quantities between -1 and 1.

    With a single group the interval is [-1, 1].
    """
    sums = _group_sums(numerator_VM, group_V), _group_sums(denominator_VM, group_V)
    return _clipped(*sums, level, (-1, 1))


def accuracy_intervals(numerator_VM: np.ndarray, denominator_VM: np.ndarray, group_V: np.ndarray) -> list[list[float]]:
    """Return [low, high] of M accuracies, between 0 and 1.

    Adds half a group of mean size that is all correct and half a group that is all wrong, like Agresti and Coull (1998) for
    proportions. Otherwise the interval of a few groups that are all correct would have zero width.
    """
    right_GM, all_GM = _group_sums(numerator_VM, group_V), _group_sums(denominator_VM, group_V)
    half_1M = HALF * all_GM.mean(axis=0, keepdims=True)
    right_GM = np.concatenate([right_GM, half_1M, np.zeros_like(half_1M)])
    return _clipped(right_GM, np.concatenate([all_GM, half_1M, half_1M]), LEVEL, (0, 1))


def accuracy_interval(correct_V: np.ndarray, group_V: np.ndarray) -> list[float]:
    """Return [low, high] of the fraction of correct videos."""
    correct_V1 = correct_V.astype(np.float64)[:, None]
    return accuracy_intervals(correct_V1, np.ones_like(correct_V1), group_V)[0]


def jackknife_interval(value: float, left_out_G: np.ndarray, *, limits: tuple[float, float]) -> list[float]:
    """Return [low, high] of a statistic that is no ratio of sums, from its values with one group left out each.

    With fewer than two groups the interval is `limits`.
    """
    groups = len(left_out_G)
    if groups < 2:
        return [float(limits[0]), float(limits[1])]
    error = np.sqrt((groups - 1) / groups * ((left_out_G - left_out_G.mean()) ** 2).sum())
    half = float(student.ppf((1 + LEVEL) / 2, groups - 1) * error)
    return [max(limits[0], value - half), min(limits[1], value + half)]


def _group_sums(value_VM: np.ndarray, group_V: np.ndarray) -> np.ndarray:
    index_V, groups = pd.factorize(pd.Series(group_V))
    sum_GM = np.zeros((len(groups), value_VM.shape[1]))
    np.add.at(sum_GM, index_V, value_VM)
    return sum_GM


def _clipped(
    numerator_GM: np.ndarray, denominator_GM: np.ndarray, level: float, limits: tuple[float, float]
) -> list[list[float]]:
    value_M, half_M = _estimate(numerator_GM, denominator_GM, level)
    ends_M2: np.ndarray = np.clip(np.stack([value_M - half_M, value_M + half_M], axis=1), *limits)
    return ends_M2.tolist()


def _estimate(numerator_GM: np.ndarray, denominator_GM: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratios and the half widths of their intervals, which are infinite if one group holds all the weight."""
    total_M = denominator_GM.sum(axis=0)
    value_M = numerator_GM.sum(axis=0) / total_M
    weight_GM = denominator_GM / total_M
    with np.errstate(divide="ignore", invalid="ignore"):
        residual_GM = (numerator_GM - value_M * denominator_GM) / total_M
        variance_M = (residual_GM**2 / (1 - weight_GM)).sum(axis=0)
        leverage_GM = weight_GM**2 / (1 - weight_GM)
        freedom_M = 1 / ((weight_GM**2).sum(axis=0) - (leverage_GM**2).sum(axis=0) + leverage_GM.sum(axis=0) ** 2)
        half_M = student.ppf((1 + level) / 2, freedom_M) * np.sqrt(variance_M)
    return value_M, np.where(weight_GM.max(axis=0) < 1, half_M, np.inf)
