"""Which test clips get a heatmap: chosen by a rule that is written down beside them, never by eye."""

from __future__ import annotations

import pandas as pd

from pipeline_lib.params import HeatmapsParams

RULES = {
    "success": "correct clips, highest confidence first; no second clip of a class before every class had one, "
    "no second clip of a video before every video had one",
    "failure": "wrong clips, highest confidence first; no second clip of a class before every class had one, "
    "no second clip of a video before every video had one",
}
"""The rule that chooses each kind of clip, as it is written beside the clips."""


def select_clips(predictions: pd.DataFrame, params: HeatmapsParams) -> pd.DataFrame:
    """Choose the clips to draw.

    Args:
        predictions: one row a clip, with the columns clip, video, class_name, confidence and correct.
        params: `successes` and `failures` say how many of each are wanted.

    Returns:
        The chosen rows, successes first, with the columns outcome (`success` or `failure`) and rule added. There are
        fewer than wanted where the test split has fewer. The order of the rows of `predictions` plays no part.
    """
    correct = predictions["correct"].astype(bool)
    successes = _choose(predictions[correct], params.successes, "success")
    failures = _choose(predictions[~correct], params.failures, "failure")
    return pd.concat([successes, failures], ignore_index=True)


def _choose(clips: pd.DataFrame, num_clips: int, outcome: str) -> pd.DataFrame:
    """Take clips round robin over the classes, and within that over the videos, by falling confidence."""
    best_first = clips.sort_values(["confidence", "clip"], ascending=[False, True])
    video_round = best_first.groupby("video").cumcount()
    class_round = best_first.groupby([best_first["class_name"], video_round]).cumcount()
    in_turn = best_first.assign(video_round=video_round, class_round=class_round).sort_values(
        ["video_round", "class_round", "confidence", "clip"], ascending=[True, True, False, True]
    )
    chosen = in_turn.head(num_clips).drop(columns=["video_round", "class_round"])
    return chosen.assign(outcome=outcome, rule=RULES[outcome])
