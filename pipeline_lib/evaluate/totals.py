"""Totals of a measure per video: what means, their intervals over groups, and paired differences are made from."""

# N clips, T frames of a clip, V videos

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline_lib.evaluate.intervals import LEVEL, ratio_intervals

VIDEO = ["video", "class_name", "group"]
"""Columns that describe a video."""


def add_up(clips: pd.DataFrame, name: str, measure: str, value_NT: np.ndarray, counts_NT: np.ndarray) -> pd.DataFrame:
    """Return the totals of a map's measure: map, measure, video, class_name, group, total, and the number of counted frames."""
    table = clips[VIDEO].assign(total=(value_NT * counts_NT).sum(axis=1), frames=counts_NT.sum(axis=1))
    table = table.groupby(VIDEO, as_index=False)[["total", "frames"]].sum()
    table = table[table["frames"] > 0].astype({"frames": "int64"})
    return pd.DataFrame({"map": name, "measure": measure}, index=table.index).join(table)


def mean_of_totals(totals: pd.DataFrame) -> float:
    """Return the mean over all frames of all videos."""
    return rounded(totals["total"].sum() / totals["frames"].sum())


def subtract_totals(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the first totals minus the second, for videos in both tables; their frames must be the same."""
    first, second = first.set_index("video"), second.set_index("video")
    both = first.index.intersection(second.index)
    return first.loc[both].assign(total=first.loc[both, "total"] - second.loc[both, "total"]).reset_index()


def interval_of_mean(totals: pd.DataFrame, *, level: float = LEVEL) -> list[float]:
    """Return the interval of `mean_of_totals` over groups."""
    total_V1, frames_V1 = (totals[[name]].to_numpy(dtype=np.float64) for name in ("total", "frames"))
    [ends] = ratio_intervals(total_V1, frames_V1, totals["group"].to_numpy(), level=level)
    return [rounded(end) for end in ends]


def rounded(value: float) -> float:
    """Round to nine decimals and turn -0 into 0, so that rounding errors do not show."""
    return round(float(value), 9) + 0.0
