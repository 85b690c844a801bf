"""Measures of attention maps that need no further forward pass, the two control maps, and names of maps.

The controls are the uniform map and a Gaussian at the centre of the frame, which models the centre bias of cameras
(Tatler 2007, "The central fixation bias in scene viewing").
"""

# N clips, T frames of a clip, K grid side, I = K * K cells in rows from the top left

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

MODEL, UNIFORM, CENTRE = "model", "uniform", "centre"
CONTROLS = (UNIFORM, CENTRE)

FLOW = "flow"
"""The magnitude of optical flow, known only in videos with boxes and so only scored by the measures of boxes."""

CENTRE_SIGMA = 0.25
"""Standard deviation of the Gaussian, as a share of the frame's side."""


@dataclass(frozen=True)
class Measure:
    """Description of a measure; written to maps.json, so that any change here changes evaluations' content keys."""

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
    "box_accuracy_30": Measure("Boxes with an IoU of 0.3 or more", "share of frames", "higher"),
    "box_accuracy_50": Measure("Boxes with an IoU of 0.5 or more", "share of frames", "higher"),
    "box_accuracy_70": Measure("Boxes with an IoU of 0.7 or more", "share of frames", "higher"),
    "tube_iou": Measure("IoU of tubes", "mean over the frames of each video", "higher"),
    "video_map_20": Measure("Video-mAP at IoU 0.2", "mean average precision of classes with boxes", "higher"),
    "video_map_50": Measure("Video-mAP at IoU 0.5", "mean average precision of classes with boxes", "higher"),
    "deletion": Measure("Deletion", "area under the true class's probability", "lower"),
    "insertion": Measure("Insertion", "area under the true class's probability", "higher"),
}
"""All measures in display order. The report's titles (`pipeline_lib.report.attention.TITLES`) take precedence on screen."""


def control_maps(grid: int) -> dict[str, np.ndarray]:
    """Return each control's map_KK; sums to 1."""
    offset_K = _offsets(grid)
    gaussian_K = np.exp(-0.5 * (offset_K / CENTRE_SIGMA) ** 2)
    centre_KK = np.outer(gaussian_K, gaussian_K)
    return {UNIFORM: np.full((grid, grid), 1 / grid**2), CENTRE: centre_KK / centre_KK.sum()}


def entropy(attention_NTI: np.ndarray) -> np.ndarray:
    """Return each frame's entropy divided by log I: 1 is uniform, 0 is all on one cell."""
    logarithm_NTI = np.log(attention_NTI, out=np.zeros_like(attention_NTI), where=attention_NTI > 0)
    share_NT: np.ndarray = -(attention_NTI * logarithm_NTI).sum(axis=2) / np.log(attention_NTI.shape[2])
    return share_NT


def centre_bias(attention_NTI: np.ndarray) -> np.ndarray:
    """Return 1 minus the mean distance of attention from the frame's centre relative to the uniform map's.

    1 is all on the middle cell, 0 is as far out as the uniform map, negative is drawn to the border. Distance is Tatler's
    measure. Similarity to the Gaussian (SIM, CC) would rate a sharper map at the centre as little biased.
    """
    offset_K = _offsets(round(attention_NTI.shape[2] ** 0.5))
    distance_I = np.hypot(offset_K[:, None], offset_K).ravel()
    bias_NT: np.ndarray = 1 - attention_NTI @ distance_I / distance_I.mean()
    return bias_NT


def drift(attention_NTI: np.ndarray) -> np.ndarray:
    """Return the total variation distance of each frame's map from the previous one: 0 is equal, 1 is disjoint.

    The first frame has no previous one: its value is 0 and must not be counted.
    """
    moved_NT = np.zeros(attention_NTI.shape[:2])
    moved_NT[:, 1:] = 0.5 * np.abs(np.diff(attention_NTI, axis=1)).sum(axis=2)
    return moved_NT


def _offsets(grid: int) -> np.ndarray:
    """Return the offsets of the cell centres from the middle, as shares of the side; exactly symmetric."""
    offset_K: np.ndarray = (np.arange(grid) - (grid - 1) / 2) / grid
    return offset_K
