"""The pointing game (Zhang et al. 2016): does the strongest cell of the attention lie on the actor?"""

# N clips, T frames of a clip, K grid side, F frames with a box

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.models.voting import valid_mask

logger = logging.getLogger(__name__)

TOLERANCE_SECONDS = 1e-3
"""Rounding of times in the boxes file."""


def score_pointing(test: pd.DataFrame, attention_NTKK: np.ndarray, boxes: pd.DataFrame, *, fps: float) -> dict[str, Any] | None:
    """Return the share of frames whose strongest cell has its centre in the actor's box, and what chance would give.

    Every valid frame counts that has a box of its video within half a frame of its own time (one box a time). `chance` is
    the mean share of cell centres in the box: the score of pointing anywhere. None if no frame has a box.
    """
    num_frames, grid = attention_NTKK.shape[1:3]
    clip_F, time_F = np.nonzero(valid_mask(test["valid_frames"].to_numpy(), num_frames))
    frames = pd.DataFrame({"clip": clip_F, "time": time_F, "video": test["video"].to_numpy()[clip_F]})
    frames["time_seconds"] = (test["first_frame"].to_numpy()[clip_F] + time_F) / fps
    matched = _nearest_boxes(frames, boxes, tolerance_seconds=0.5 / fps + TOLERANCE_SECONDS)
    if matched.empty:
        logger.warning("no frame of the test part has a box of its video; attention is not checked against boxes")
        return None
    strongest_F = attention_NTKK.reshape(*attention_NTKK.shape[:2], -1).argmax(axis=2)[matched["clip"], matched["time"]]
    inside_FI = _cells_inside(matched, grid)
    return {
        "accuracy": float(inside_FI[np.arange(len(matched)), strongest_F].mean()),
        "chance": float(inside_FI.mean()),
        "num_frames": len(matched),
    }


def _nearest_boxes(frames: pd.DataFrame, boxes: pd.DataFrame, *, tolerance_seconds: float) -> pd.DataFrame:
    """Join each frame with the box of its video that is nearest in time; frames without one are left out."""
    boxes = boxes.astype({"time_seconds": "float64"}).sort_values("time_seconds", kind="stable")
    boxes["video"] = boxes["video"].astype(frames["video"].dtype)
    matched = pd.merge_asof(
        frames.sort_values("time_seconds", kind="stable"),
        boxes,
        on="time_seconds",
        by="video",
        direction="nearest",
        tolerance=tolerance_seconds,  # type: ignore[arg-type]  # the stubs know no floats
    )
    return matched.dropna(subset=["x0", "y0", "x1", "y1"])


def _cells_inside(matched: pd.DataFrame, grid: int) -> np.ndarray:
    """Return inside_FI: which cell centres, in rows from the top left, lie in each frame's box."""
    centres_K = (np.arange(grid) + 0.5) / grid
    left, top, right, bottom = (matched[name].to_numpy()[:, None] for name in ("x0", "y0", "x1", "y1"))
    columns_FK = (left <= centres_K) & (centres_K <= right)
    rows_FK = (top <= centres_K) & (centres_K <= bottom)
    inside_FKK: np.ndarray = rows_FK[:, :, None] & columns_FK[:, None, :]
    return inside_FKK.reshape(len(matched), -1)
