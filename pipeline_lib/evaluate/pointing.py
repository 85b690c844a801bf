"""Compare attention with the actor's box: the pointing game (Zhang et al. 2016) and the attention mass in the box."""

# N clips, T frames of a clip, K grid side, I = K * K cells in rows from the top left, F frames with a box

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline_lib.training.voting import valid_mask

logger = logging.getLogger(__name__)

TOLERANCE_SECONDS = 1e-3
"""Rounding error of the times in the boxes file."""


@dataclass(frozen=True)
class Actor:
    """The cells that the actor's box covers in each frame that has one."""

    clip_F: np.ndarray
    """Row of the frame's clip."""
    time_F: np.ndarray
    inside_FI: np.ndarray
    """Whether the cell's centre is in the box."""
    covered_FI: np.ndarray
    """Fraction of the cell's area in the box."""


def find_actor(test: pd.DataFrame, num_frames: int, grid: int, boxes: pd.DataFrame, *, fps: float) -> Actor | None:
    """Match valid frames to the boxes of their video within half a frame's duration; return None if no frame has a box.

    `boxes` has the columns video, time_seconds, x0, y0, x1, y1 and one row per time.
    """
    clip_F, time_F = np.nonzero(valid_mask(test["valid_frames"].to_numpy(), num_frames))
    frames = pd.DataFrame({"clip": clip_F, "time": time_F, "video": test["video"].to_numpy()[clip_F]})
    frames["time_seconds"] = (test["first_frame"].to_numpy()[clip_F] + time_F) / fps
    matched = _nearest_boxes(frames, boxes, tolerance_seconds=0.5 / fps + TOLERANCE_SECONDS)
    if matched.empty:
        logger.warning("no frame of the test split has a box; attention is not checked against boxes")
        return None
    return Actor(
        matched["clip"].to_numpy(),
        matched["time"].to_numpy(),
        inside_FI=_of_cells(*(_centres_inside(matched, *ends, grid) for ends in (("y0", "y1"), ("x0", "x1")))) > 0,
        covered_FI=_of_cells(*(_covered(matched, *ends, grid) for ends in (("y0", "y1"), ("x0", "x1")))),
    )


def points_at_actor(attention_FI: np.ndarray, actor: Actor) -> np.ndarray:
    """Return 1 for each frame whose strongest cell's centre is in the box, else 0; ties are averaged."""
    strongest_FI = attention_FI == attention_FI.max(axis=1, keepdims=True)
    share_F: np.ndarray = (strongest_FI & actor.inside_FI).sum(axis=1) / strongest_FI.sum(axis=1)
    return share_F


def mass_in_box(attention_FI: np.ndarray, actor: Actor) -> np.ndarray:
    """Return the fraction of each frame's attention in the box; cells count in proportion to their covered area."""
    mass_F: np.ndarray = (attention_FI * actor.covered_FI).sum(axis=1)
    return mass_F


def _nearest_boxes(frames: pd.DataFrame, boxes: pd.DataFrame, *, tolerance_seconds: float) -> pd.DataFrame:
    """Join each frame with the nearest box in time of its video; drop frames without one."""
    boxes = boxes.astype({"time_seconds": "float64"}).sort_values("time_seconds", kind="stable")
    boxes["video"] = boxes["video"].astype(frames["video"].dtype)
    matched = pd.merge_asof(
        frames.sort_values("time_seconds", kind="stable"),
        boxes,
        on="time_seconds",
        by="video",
        direction="nearest",
        tolerance=tolerance_seconds,  # type: ignore[arg-type]  # missing in the stubs
    )
    return matched.dropna(subset=["x0", "y0", "x1", "y1"])


def _centres_inside(matched: pd.DataFrame, start: str, end: str, grid: int) -> np.ndarray:
    """Return which rows (or columns) of cells have their centres between two edges of the box, (F, K)."""
    centre_K = (np.arange(grid) + 0.5) / grid
    start_F1, end_F1 = (matched[name].to_numpy()[:, None] for name in (start, end))
    inside_FK: np.ndarray = (start_F1 <= centre_K) & (centre_K <= end_F1)
    return inside_FK


def _covered(matched: pd.DataFrame, start: str, end: str, grid: int) -> np.ndarray:
    """Return the fraction of each row (or column) of cells between two edges of the box, (F, K)."""
    edge_L = np.arange(grid + 1) / grid
    start_F1, end_F1 = (matched[name].to_numpy()[:, None] for name in (start, end))
    length_FK = np.minimum(end_F1, edge_L[1:]) - np.maximum(start_F1, edge_L[:-1])
    return np.maximum(length_FK, 0) * grid


def _of_cells(rows_FK: np.ndarray, columns_FK: np.ndarray) -> np.ndarray:
    cells_FKK: np.ndarray = rows_FK[:, :, None] * columns_FK[:, None, :]
    return cells_FKK.reshape(len(cells_FKK), -1)
