"""Select the test clips to render by a fixed rule, which is stored with them."""

from __future__ import annotations

import pandas as pd

from pipeline_lib.params import HeatmapsParams

RULES = {
    "success": "correct clips, highest confidence first; no second clip of a class before every class had one, "
    "no second clip of a video before every video had one",
    "failure": "wrong clips, highest confidence first; no second clip of a class before every class had one, "
    "no second clip of a video before every video had one",
}
"""The selection rule of each outcome, as stored in `heatmaps.json`."""


def select_clips(predictions: pd.DataFrame, params: HeatmapsParams) -> pd.DataFrame:
    """Select the clips to render.

    Args:
        predictions: one row per clip, with the columns clip, video, class_name, confidence and correct.
        params: `successes` and `failures` are the maximum numbers of clips.

    Returns:
        the selected rows, successes first, with the added columns outcome (`success` or `failure`) and rule. The result does
        not depend on the order of `predictions`.
    """
    correct = predictions["correct"].astype(bool)
    successes = _choose(predictions[correct], params.successes, "success")
    failures = _choose(predictions[~correct], params.failures, "failure")
    return pd.concat([successes, failures], ignore_index=True)


def _choose(clips: pd.DataFrame, num_clips: int, outcome: str) -> pd.DataFrame:
    """Take clips by descending confidence, round robin over videos and classes."""
    best_first = clips.sort_values(["confidence", "clip"], ascending=[False, True])
    video_round = best_first.groupby("video").cumcount()
    class_round = best_first.groupby([best_first["class_name"], video_round]).cumcount()
    round_robin = best_first.assign(video_round=video_round, class_round=class_round).sort_values(
        ["video_round", "class_round", "confidence", "clip"], ascending=[True, True, False, True]
    )
    chosen = round_robin.head(num_clips).drop(columns=["video_round", "class_round"])
    return chosen.assign(outcome=outcome, rule=RULES[outcome])
