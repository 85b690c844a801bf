"""Measures of attention maps that need no further run of the model, and the control maps.

The controls are the uniform map and a Gaussian at the centre of the frame, where cameras place their subject (Tatler 2007, "The
central fixation bias in scene viewing"). A map that scores no better than these provides no evidence for the model.
"""

# N clips, T frames of a clip, K grid side, I = K * K cells in rows from the top left

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

MODEL, UNIFORM, CENTRE = "model", "uniform", "centre"
CONTROLS = (UNIFORM, CENTRE)

CENTRE_SIGMA = 0.25
"""Standard deviation of the centre's Gaussian as a fraction of the frame's side."""


@dataclass(frozen=True)
class Measure:
    """Title, unit and direction of a measure."""

    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    """None if neither direction is better."""


MEASURES = {
    "entropy": Measure("Entropy", "share of the uniform map's", None),
    "centre_bias": Measure("Centre bias", "1 - mean distance from the centre / the uniform map's", None),
    "drift": Measure("Drift", "share of attention moved from frame to frame", None),
    "pointing": Measure("Strongest cell on the actor", "share of frames", "higher"),
    "mass_in_box": Measure("Attention in the actor's box", "share of attention", "higher"),
    "deletion": Measure("Deletion", "area under the true class's probability", "lower"),
    "insertion": Measure("Insertion", "area under the true class's probability", "higher"),
}
"""All measures in display order."""


def control_maps(grid: int) -> dict[str, np.ndarray]:
    """Return map_KK of each control; it sums to 1 like attention."""
    offset_K = _offsets(grid)
    gaussian_K = np.exp(-0.5 * (offset_K / CENTRE_SIGMA) ** 2)
    centre_KK = np.outer(gaussian_K, gaussian_K)
    return {UNIFORM: np.full((grid, grid), 1 / grid**2), CENTRE: centre_KK / centre_KK.sum()}


def entropy(attention_NTI: np.ndarray) -> np.ndarray:
    """Return each frame's entropy divided by log I: 1 for a uniform map, 0 for a single cell."""
    logarithm_NTI = np.log(attention_NTI, out=np.zeros_like(attention_NTI), where=attention_NTI > 0)
    share_NT: np.ndarray = -(attention_NTI * logarithm_NTI).sum(axis=2) / np.log(attention_NTI.shape[2])
    return share_NT


def centre_bias(attention_NTI: np.ndarray) -> np.ndarray:
    """Return 1 minus the mean distance of attention from the frame's centre divided by that of the uniform map.

    1 means all attention on the central cell, 0 the same distance as the uniform map, and negative values a bias towards the
    border. Distance from the centre is Tatler's measure. Similarity to the central Gaussian (SIM, CC) would rate a map that is
    narrower than the Gaussian as less biased.
    """
    offset_K = _offsets(round(attention_NTI.shape[2] ** 0.5))
    distance_I = np.hypot(offset_K[:, None], offset_K).ravel()
    bias_NT: np.ndarray = 1 - attention_NTI @ distance_I / distance_I.mean()
    return bias_NT


def drift(attention_NTI: np.ndarray) -> np.ndarray:
    """Return the total variation distance between each frame's map and the previous one: 0 if equal, 1 if disjoint.

    The first frame has no predecessor and gets 0; do not count it.
    """
    moved_NT = np.zeros(attention_NTI.shape[:2])
    moved_NT[:, 1:] = 0.5 * np.abs(np.diff(attention_NTI, axis=1)).sum(axis=2)
    return moved_NT


def _offsets(grid: int) -> np.ndarray:
    """Return the offsets of the cells' centres from the middle as fractions of the side; exactly antisymmetric."""
    offset_K: np.ndarray = (np.arange(grid) - (grid - 1) / 2) / grid
    return offset_K
