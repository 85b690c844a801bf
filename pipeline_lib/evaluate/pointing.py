"""Compare attention with the actor's box: the pointing game (Zhang et al. 2016) and the attention mass in the box."""

# N clips, T frames of a clip, K grid side, I = K * K cells in rows from the top left, F frames with a box, R boxes of them all

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline_lib.training.voting import valid_mask

logger = logging.getLogger(__name__)

CORNERS = ["x0", "y0", "x1", "y1"]

TOLERANCE_SECONDS = 1e-3
"""Rounding error of the times in the boxes file."""


@dataclass(frozen=True)
class Actor:
    """The boxes of each frame that has one, and the cells that they cover; a frame with several actors has several."""

    clip_F: np.ndarray
    """Row of the frame's clip."""
    time_F: np.ndarray
    first_F: np.ndarray
    """Row of the frame's first box in `box_R4`."""
    box_R4: np.ndarray
    """x0, y0, x1, y1 of all boxes, frame by frame, as fractions of the frame."""
    inside_FI: np.ndarray
    """Whether the cell's centre is in a box."""
    covered_RI: np.ndarray
    """Fraction of the cell's area in the box."""

    def of_boxes(self, value_F: np.ndarray) -> np.ndarray:
        """Return each box's value from its frame's."""
        repeated_R: np.ndarray = np.repeat(value_F, self.count_boxes(), axis=0)
        return repeated_R

    def count_boxes(self) -> np.ndarray:
        """Return each frame's number of boxes."""
        return np.diff(self.first_F, append=len(self.box_R4))

    def nearest(self, score_R: np.ndarray) -> np.ndarray:
        """Return each frame's score by the box that scores highest."""
        score_F: np.ndarray = np.maximum.reduceat(score_R, self.first_F)
        return score_F


def find_actor(test: pd.DataFrame, num_frames: int, grid: int, boxes: pd.DataFrame, *, fps: float) -> Actor | None:
    """Match valid frames to the boxes of their video within half a frame's duration; return None if no frame has a box.

    `boxes` has the columns video, time_seconds, x0, y0, x1, y1. Of the times within reach, all rows of the nearest count.
    """
    clip_F, time_F = np.nonzero(valid_mask(test["valid_frames"].to_numpy(), num_frames))
    frames = pd.DataFrame({"clip": clip_F, "time": time_F, "video": test["video"].to_numpy()[clip_F]})
    frames["time_seconds"] = (test["first_frame"].to_numpy()[clip_F] + time_F) / fps
    matched = _nearest_boxes(frames, boxes, tolerance_seconds=0.5 / fps + TOLERANCE_SECONDS)
    if matched.empty:
        logger.warning("no frame of the test split has a box; attention is not checked against boxes")
        return None
    first_F = np.flatnonzero(~matched.duplicated(["clip", "time"]).to_numpy())
    inside_RI = _of_cells(*(_centres_inside(matched, *ends, grid) for ends in (("y0", "y1"), ("x0", "x1")))) > 0
    return Actor(
        matched["clip"].to_numpy()[first_F],
        matched["time"].to_numpy()[first_F],
        first_F,
        matched[CORNERS].to_numpy(dtype=np.float64),
        inside_FI=np.logical_or.reduceat(inside_RI, first_F, axis=0),
        covered_RI=_of_cells(*(_covered(matched, *ends, grid) for ends in (("y0", "y1"), ("x0", "x1")))),
    )


def points_at_actor(attention_FI: np.ndarray, actor: Actor) -> np.ndarray:
    """Return 1 for each frame whose strongest cell's centre is in a box, else 0; ties are averaged."""
    strongest_FI = attention_FI == attention_FI.max(axis=1, keepdims=True)
    share_F: np.ndarray = (strongest_FI & actor.inside_FI).sum(axis=1) / strongest_FI.sum(axis=1)
    return share_F


def mass_in_box(attention_FI: np.ndarray, actor: Actor) -> np.ndarray:
    """Return the fraction of each frame's attention in the box; cells count in proportion to their covered area.

    Of several boxes, the one with the most attention counts.
    """
    return actor.nearest((actor.of_boxes(attention_FI) * actor.covered_RI).sum(axis=1))


def _nearest_boxes(frames: pd.DataFrame, boxes: pd.DataFrame, *, tolerance_seconds: float) -> pd.DataFrame:
    """Join each frame with all boxes of its video at the nearest time; drop frames without one."""
    boxes = boxes.astype({"time_seconds": "float64"}).dropna(subset=CORNERS)
    boxes["video"] = boxes["video"].astype(frames["video"].dtype)
    times = boxes[["video", "time_seconds"]].drop_duplicates().sort_values("time_seconds", kind="stable")
    matched = pd.merge_asof(
        frames.sort_values("time_seconds", kind="stable"),
        times.assign(box_seconds=times["time_seconds"]),
        on="time_seconds",
        by="video",
        direction="nearest",
        tolerance=tolerance_seconds,  # type: ignore[arg-type]  # missing in the stubs
    ).dropna(subset=["box_seconds"])
    rows = matched[["video", "box_seconds", "clip", "time"]].rename(columns={"box_seconds": "time_seconds"})
    return rows.merge(boxes, on=["video", "time_seconds"], how="left")


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
