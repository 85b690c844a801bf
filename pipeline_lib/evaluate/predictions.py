"""Tables of what was predicted: a row a clip, a row a video."""

# N clips, T frames of a clip, C classes

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline_lib.models.voting import Tally


def clip_predictions(
    test: pd.DataFrame, probability_NTC: np.ndarray, clip_tally: Tally, classes: Sequence[str]
) -> pd.DataFrame:
    """Return one row a clip, in the order of `test`.

    `predicted` is the mode of the valid frames' predictions (ties: see `pipeline_lib.models.voting`), `confidence` its mean
    probability over them; `frame_predicted` and `frame_confidence` are each valid frame's own.
    """
    names = np.asarray(classes, dtype=object)
    frame_NT, confidence_NT = names[probability_NTC.argmax(axis=2)], probability_NTC.max(axis=2)
    table = test[["clip", "video", "class_name"]].copy()
    _add_verdict(table, clip_tally, names)
    table["valid_frames"] = test["valid_frames"].astype("int32")
    lengths = test["valid_frames"].tolist()
    table["frame_predicted"] = [row_T[:length].tolist() for row_T, length in zip(frame_NT, lengths, strict=True)]
    table["frame_confidence"] = [row_T[:length].tolist() for row_T, length in zip(confidence_NT, lengths, strict=True)]
    return table


def video_predictions(test: pd.DataFrame, clip_tally: Tally, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row a video, in the order of their first clips: the same vote, over the valid frames of all its clips."""
    video_N, _ = pd.factorize(test["video"])
    grouped = test.groupby("video", sort=False)
    table = grouped["class_name"].first().reset_index()
    _add_verdict(table, clip_tally.pool(video_N, len(table)), np.asarray(classes, dtype=object))
    table["num_clips"] = grouped.size().to_numpy(dtype=np.int32)
    return table


def _add_verdict(table: pd.DataFrame, counted: Tally, names: np.ndarray) -> None:
    table["predicted"] = names[counted.predicted]
    table["confidence"] = counted.confidence
    table["correct"] = table["predicted"] == table["class_name"]
