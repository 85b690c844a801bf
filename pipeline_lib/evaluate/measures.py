"""What an attention map can be measured by without running the model again, and the two maps it is measured against.

Controls are the uniform map, and a Gaussian on the centre of the frame, where cameras put what they film (Tatler 2007, "The
central fixation bias in scene viewing"): what the centre scores as well needed no model.
"""

# N clips, T frames of a clip, K grid side, I = K * K cells in rows from the top left

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

MODEL, UNIFORM, CENTRE = "model", "uniform", "centre"
CONTROLS = (UNIFORM, CENTRE)

CENTRE_SIGMA = 0.25
"""Standard deviation of the centre's Gaussian, as a share of the frame's side."""


@dataclass(frozen=True)
class Measure:
    """How a measure is told to people."""

    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    """None where a map is no better for being low or high."""


MEASURES = {
    "entropy": Measure("Entropy", "share of the uniform map's", None),
    "centre_bias": Measure("Centre bias", "1 - mean distance from the centre / the uniform map's", None),
    "drift": Measure("Drift", "share of attention moved from frame to frame", None),
    "pointing": Measure("Strongest cell on the actor", "share of frames", "higher"),
    "mass_in_box": Measure("Attention in the actor's box", "share of attention", "higher"),
    "deletion": Measure("Deletion", "area under the true class's probability", "lower"),
    "insertion": Measure("Insertion", "area under the true class's probability", "higher"),
}
"""Every measure, in the order in which they are shown."""


def control_maps(grid: int) -> dict[str, np.ndarray]:
    """Return each control's map_KK, which sums to 1 as attention does."""
    offset_K = _offsets(grid)
    gaussian_K = np.exp(-0.5 * (offset_K / CENTRE_SIGMA) ** 2)
    centre_KK = np.outer(gaussian_K, gaussian_K)
    return {UNIFORM: np.full((grid, grid), 1 / grid**2), CENTRE: centre_KK / centre_KK.sum()}


def entropy(attention_NTI: np.ndarray) -> np.ndarray:
    """Return each frame's entropy over log I: 1 is spread evenly, 0 is all on one cell."""
    logarithm_NTI = np.log(attention_NTI, out=np.zeros_like(attention_NTI), where=attention_NTI > 0)
    share_NT: np.ndarray = -(attention_NTI * logarithm_NTI).sum(axis=2) / np.log(attention_NTI.shape[2])
    return share_NT


def centre_bias(attention_NTI: np.ndarray) -> np.ndarray:
    """Return 1 less the mean distance of attention from the frame's centre, as a share of the uniform map's.

    1 is all on the middle cell, 0 as far out as the uniform map, less than 0 drawn to the border. The distance of what is
    looked at from the centre is Tatler's measure. Likeness to the centre's Gaussian (SIM, CC) was not chosen: it calls a
    map that is sharper than the Gaussian, and in the very middle of it, little biased.
    """
    offset_K = _offsets(round(attention_NTI.shape[2] ** 0.5))
    distance_I = np.hypot(offset_K[:, None], offset_K).ravel()
    bias_NT: np.ndarray = 1 - attention_NTI @ distance_I / distance_I.mean()
    return bias_NT


def drift(attention_NTI: np.ndarray) -> np.ndarray:
    """Return the total variation distance of each frame's map from the one before: 0 is the same map, 1 shares no cell.

    The first frame, which has none before it, gets 0 and is not to be counted.
    """
    moved_NT = np.zeros(attention_NTI.shape[:2])
    moved_NT[:, 1:] = 0.5 * np.abs(np.diff(attention_NTI, axis=1)).sum(axis=2)
    return moved_NT


def _offsets(grid: int) -> np.ndarray:
    """Return how far the cells' centres lie from the middle, as shares of the side; those of both sides to the same bit."""
    offset_K: np.ndarray = (np.arange(grid) - (grid - 1) / 2) / grid
    return offset_K
