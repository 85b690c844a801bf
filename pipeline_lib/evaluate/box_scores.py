"""Score a model's boxes over the test split: totals per video, and video-mAP."""

# N clips, T frames of a clip, I = K * K cells, C classes, V videos

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.evaluate.localisation import TUBE_IOU, Localisation, localise
from pipeline_lib.evaluate.measures import MODEL
from pipeline_lib.evaluate.pointing import Actor
from pipeline_lib.evaluate.totals import VIDEO, add_up, rounded
from pipeline_lib.evaluate.video_map import VIDEO_MAP, video_map, video_map_interval
from pipeline_lib.training.fusion import video_means


@dataclass(frozen=True)
class BoxScores:
    """All measures of the boxes of one model, of other maps, of the controls and of the oracle."""

    localisation: Localisation
    totals: pd.DataFrame
    """Rows of `ScoredMaps.totals` for the measures of frames and of tubes."""
    video_map: Mapping[str, Mapping[str, Any]]
    """The value of each map, and the model's `interval`, by measure."""


def score_boxes(
    test: pd.DataFrame,
    attention_NTI: np.ndarray,
    actor: Actor | None,
    probability_NTC: np.ndarray,
    classes: Sequence[str],
    others: Mapping[str, np.ndarray] | None = None,
) -> BoxScores | None:
    """Localise the actor in the test clips and score the boxes; return None if no frame has a box.

    Args:
        test: the clips, with `group`.
        attention_NTI: the model's maps.
        actor: the actor's boxes.
        probability_NTC: class probabilities, which rank the tubes.
        classes: the names of C.
        others: further map_NTI by name.
    """
    if actor is None:
        return None
    found = localise(test, attention_NTI, actor, others)
    videos = test.drop_duplicates("video")[VIDEO]
    probability_VC = video_means(probability_NTC, test["valid_frames"].to_numpy(), pd.factorize(test["video"])[0])
    return BoxScores(
        found, _totals(test, attention_NTI.shape[1], actor, found), _video_map(videos, classes, probability_VC, found)
    )


def _totals(test: pd.DataFrame, num_frames: int, actor: Actor, found: Localisation) -> pd.DataFrame:
    tables = []
    has_box_NT = np.zeros((len(test), num_frames), dtype=bool)
    has_box_NT[actor.clip_F, actor.time_F] = True
    for key, value_F in found.values_F.items():
        value_NT = np.zeros(has_box_NT.shape)
        value_NT[actor.clip_F, actor.time_F] = value_F
        tables.append(add_up(test, *key, value_NT, has_box_NT))
    videos = test.drop_duplicates("video").set_index("video", drop=False).loc[found.video_V].reset_index(drop=True)
    one_V1 = np.ones((len(videos), 1))
    tables += [add_up(videos, name, TUBE_IOU, tube_V[:, None], one_V1) for name, tube_V in found.tube_V.items()]
    return pd.concat(tables, ignore_index=True)


def _video_map(
    videos: pd.DataFrame, classes: Sequence[str], probability_VC: np.ndarray, found: Localisation
) -> dict[str, dict[str, Any]]:
    iou_V = {
        name: pd.Series(tube_V, index=found.video_V).reindex(videos["video"]).to_numpy()
        for name, tube_V in found.tube_V.items()
    }
    rows: dict[str, dict[str, Any]] = {}
    for measure, limit in VIDEO_MAP.items():
        rows[measure] = {
            name: rounded(video_map(videos, classes, probability_VC, own_V, limit)) for name, own_V in iou_V.items()
        }
        interval = video_map_interval(videos, classes, probability_VC, iou_V[MODEL], limit)
        rows[measure]["interval"] = [rounded(end) for end in interval]
    return rows
