"""Localise the actor by attention (Li et al. 2018, VideoLSTM): a box in each frame, the boxes of a video linked to one tube.

Maps are smoothed in time, upsampled bilinearly, and scaled between the frame's minimum and maximum, as Choe et al. do (2020,
"Evaluating weakly supervised object localization methods right"): attention is a softmax and never zero, so that a share of the
maximum alone would say how sharp a map is and not where it is. The box is the tight one around the largest connected component
above a threshold. A fixed threshold would favour some maps. So, as in their MaxBoxAcc, each map has the one that suits it best.

A frame with several actors is compared with the box nearest to the predicted one: that with the largest IoU.
"""

# N clips, T frames of a video, K grid side, I = K * K cells, S samples per side of an upsampled map, F frames with a box,
# R boxes of them all, V videos with a box, P thresholds, J pairs of edges of whole cells, 4 = x0, y0, x1, y1 as fractions

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import pandas as pd
from scipy import ndimage

from pipeline_lib.evaluate.measures import MODEL, control_maps
from pipeline_lib.evaluate.pointing import CORNERS, Actor
from pipeline_lib.training.voting import valid_mask

ORACLE = "oracle"
"""The best box of whole cells, a bound for maps that are not upsampled."""

SIGMA_FRAMES, RADIUS_FRAMES = 1.0, 2
"""Gaussian in time, over five frames."""

SAMPLES = 4
"""Samples of the upsampled map per side of a cell."""

THRESHOLDS = np.arange(1, 20) / 20
"""Shares of a frame's range that are tried."""

THRESHOLD = 0.5
"""The share where no boxes are known to choose one by."""

BOX_ACCURACY = {"box_accuracy_30": 0.3, "box_accuracy_50": 0.5, "box_accuracy_70": 0.7}
"""Measures of frames, and the IoU that counts as right."""

TUBE_IOU = "tube_iou"

UNIFORM_RANGE = 1e-6
"""Maps whose range is a smaller share of their maximum count as uniform: their box is the whole frame."""

BLOCK_FRAMES = 256
"""Frames whose upsampled maps are in memory at a time."""

_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Localisation:
    """The agreement of the boxes of each map (the model's, other ones, the controls', the oracle's) with the actors'."""

    values_F: Mapping[tuple[str, str], np.ndarray]
    """1 for each frame whose box is right, else 0, by map and measure."""
    tube_V: Mapping[str, np.ndarray]
    """Mean IoU over each video's frames with a box, by map."""
    video_V: np.ndarray
    thresholds: Mapping[tuple[str, str], float]
    """The threshold that suits each map best, by map and measure; the oracle has none."""
    counts: Mapping[str, int]
    """Numbers of videos and frames with a box, of these frames with several, and of the other valid frames."""
    tubes: pd.DataFrame
    """The model's tubes, one row a valid frame of a video with boxes: clip, frame (of the clip), x0, y0, x1, y1, iou (nan for
    a frame without a box) and truth (x0, y0, x1, y1 of each box in turn)."""


def localise(
    test: pd.DataFrame, attention_NTI: np.ndarray, actor: Actor, others: Mapping[str, np.ndarray] | None = None
) -> Localisation:
    """Box the actor by the model's map, by `others` (map_NTI by name) and by the controls, and compare with the truth."""
    grid = round(attention_NTI.shape[2] ** 0.5)
    maps = _videos(test, attention_NTI, actor, grid)
    controls = {name: _static_sweep(map_KK, actor) for name, map_KK in control_maps(grid).items()}
    moving = {name: _sweep(_videos(test, map_NTI, actor, grid), actor) for name, map_NTI in (others or {}).items()}
    iou_PF = {MODEL: _sweep(maps, actor)} | controls | moving | {ORACLE: whole_cells_iou(actor, grid)[None]}
    video_F, videos = pd.factorize(test["video"].to_numpy()[actor.clip_F])
    tube_PV = {name: _video_means(own_PF, video_F) for name, own_PF in iou_PF.items()}
    best_of = {(name, TUBE_IOU): int(own_PV.mean(axis=1).argmax()) for name, own_PV in tube_PV.items()}
    values_F: dict[tuple[str, str], np.ndarray] = {}
    for (name, own_PF), (measure, iou) in product(iou_PF.items(), BOX_ACCURACY.items()):
        right_PF = (own_PF >= iou).astype(np.float64)
        best_of[name, measure] = int(right_PF.mean(axis=1).argmax())
        values_F[name, measure] = right_PF[best_of[name, measure]]
    best = best_of[MODEL, TUBE_IOU]
    return Localisation(
        values_F,
        {name: own_PV[best_of[name, TUBE_IOU]] for name, own_PV in tube_PV.items()},
        np.asarray(videos),
        {key: float(THRESHOLDS[row]) for key, row in best_of.items() if key[0] != ORACLE},
        _counts(test, attention_NTI.shape[1], actor, len(videos)),
        _tubes(test, maps, actor, THRESHOLDS[best], iou_PF[MODEL][best]),
    )


def _video_means(iou_PF: np.ndarray, video_F: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(video_F, weights=iou_F) / np.bincount(video_F) for iou_F in iou_PF])


def boxes_of_maps(maps_TKK: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Return box_T4 of a whole video's maps: smoothed in time, upsampled, and cut at a share of each frame's range."""
    smooth_TKK = smooth(maps_TKK)
    blocks = [smooth_TKK[first : first + BLOCK_FRAMES] for first in range(0, len(smooth_TKK), BLOCK_FRAMES)]
    return np.concatenate([largest_boxes(levels(block_TKK), threshold) for block_TKK in blocks])


def smooth(maps_TKK: np.ndarray) -> np.ndarray:
    """Return the maps averaged over time by a Gaussian of five frames; the first and last frames count repeatedly."""
    smooth_TKK: np.ndarray = ndimage.gaussian_filter1d(
        maps_TKK.astype(np.float64), SIGMA_FRAMES, axis=0, mode="nearest", radius=RADIUS_FRAMES
    )
    return smooth_TKK


def levels(maps_TKK: np.ndarray) -> np.ndarray:
    """Return maps upsampled bilinearly and scaled so that each frame's minimum is 0 and its maximum 1; uniform ones are 1."""
    upsample_SK = _bilinear(maps_TKK.shape[1])
    level_TSS: np.ndarray = upsample_SK @ maps_TKK @ upsample_SK.T
    low_T11, high_T11 = (extreme(level_TSS, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    range_T11 = high_T11 - low_T11
    is_uniform_T11 = range_T11 <= UNIFORM_RANGE * high_T11
    scaled_TSS: np.ndarray = np.where(is_uniform_T11, 1.0, (level_TSS - low_T11) / np.where(is_uniform_T11, 1.0, range_T11))
    return scaled_TSS


@lru_cache(maxsize=4)
def _bilinear(grid: int) -> np.ndarray:
    """Return the weights_SK of bilinear upsampling; beyond the centres of the outer cells their value continues."""
    centre_S = np.clip((np.arange(grid * SAMPLES) + 0.5) / SAMPLES - 0.5, 0, grid - 1)
    weights_SK: np.ndarray = np.maximum(1 - np.abs(centre_S[:, None] - np.arange(grid)), 0)
    return weights_SK


def largest_boxes(level_TSS: np.ndarray, threshold: float) -> np.ndarray:
    """Return box_T4, tight around each frame's largest connected component of levels at or above the threshold."""
    component_TSS, num_components = ndimage.label(level_TSS >= threshold, structure=_IN_PLANE)
    frames, side = component_TSS.shape[:2]
    frame_of = np.zeros(num_components + 1, dtype=np.int64)
    frame_of[component_TSS] = np.arange(frames)[:, None, None]
    size_of = np.bincount(component_TSS.ravel())
    order = 1 + np.lexsort((-size_of[1:], frame_of[1:]))
    largest_T = order[np.searchsorted(frame_of[order], np.arange(frames))]
    inside_TSS = component_TSS == largest_T[:, None, None]
    x0_T, x1_T = _ends(inside_TSS.any(axis=1))
    y0_T, y1_T = _ends(inside_TSS.any(axis=2))
    return np.stack([x0_T, y0_T, x1_T, y1_T], axis=1) / side


def _ends(inside_TS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first sample inside, and the first one after the last inside."""
    return inside_TS.argmax(axis=1), inside_TS.shape[1] - inside_TS[:, ::-1].argmax(axis=1)


def intersection_over_union(first_R4: np.ndarray, second_R4: np.ndarray) -> np.ndarray:
    """Return the IoU of each two boxes."""
    corner_R2 = np.minimum(first_R4[:, 2:], second_R4[:, 2:]) - np.maximum(first_R4[:, :2], second_R4[:, :2])
    common_R = np.maximum(corner_R2, 0).prod(axis=1)
    area_R, other_R = ((box_R4[:, 2:] - box_R4[:, :2]).prod(axis=1) for box_R4 in (first_R4, second_R4))
    iou_R: np.ndarray = common_R / (area_R + other_R - common_R)
    return iou_R


def whole_cells_iou(actor: Actor, grid: int) -> np.ndarray:
    """Return the IoU_F of the best box of whole cells in each frame."""
    first_J, last_J = np.triu_indices(grid)
    start_J, end_J = first_J / grid, (last_J + 1) / grid
    area_JJ = np.outer(end_J - start_J, end_J - start_J)
    best_R = np.zeros(len(actor.box_R4))
    for first in range(0, len(best_R), BLOCK_FRAMES):
        rows = slice(first, first + BLOCK_FRAMES)
        x0_R1, y0_R1, x1_R1, y1_R1 = actor.box_R4[rows].T[:, :, None]
        columns_RJ = np.maximum(np.minimum(x1_R1, end_J) - np.maximum(x0_R1, start_J), 0)
        rows_RJ = np.maximum(np.minimum(y1_R1, end_J) - np.maximum(y0_R1, start_J), 0)
        common_RJJ = rows_RJ[:, :, None] * columns_RJ[:, None, :]
        area_R11 = ((x1_R1 - x0_R1) * (y1_R1 - y0_R1))[:, :, None]
        best_R[rows] = (common_RJJ / (area_R11 + area_JJ - common_RJJ)).max(axis=(1, 2))
    return actor.nearest(best_R)


@dataclass(frozen=True)
class _Video:
    """The maps of all valid frames of a video with boxes, in time."""

    clip_T: np.ndarray
    time_T: np.ndarray
    map_TKK: np.ndarray
    """Smoothed in time."""
    frame_T: np.ndarray
    """The frame's row among the frames with a box, -1 for others."""


def _videos(test: pd.DataFrame, attention_NTI: np.ndarray, actor: Actor, grid: int) -> list[_Video]:
    frame_NT = np.full(attention_NTI.shape[:2], -1)
    frame_NT[actor.clip_F, actor.time_F] = np.arange(len(actor.clip_F))
    valid_NT = valid_mask(test["valid_frames"].to_numpy(), attention_NTI.shape[1])
    video_N, _ = pd.factorize(test["video"])
    in_time_N = np.argsort(test["first_frame"].to_numpy(), kind="stable")
    videos = []
    for video in pd.unique(video_N[actor.clip_F]):
        clips = in_time_N[video_N[in_time_N] == video]
        row_T, time_T = np.nonzero(valid_NT[clips])
        clip_T = clips[row_T]
        maps_TKK = attention_NTI[clip_T, time_T].reshape(-1, grid, grid)
        videos.append(_Video(clip_T, time_T, smooth(maps_TKK), frame_NT[clip_T, time_T]))
    return videos


def _sweep(videos: Sequence[_Video], actor: Actor) -> np.ndarray:
    """Return the IoU of the model's box at each threshold in each frame with a box, (P, F)."""
    box_PF4 = np.zeros((len(THRESHOLDS), len(actor.clip_F), 4))
    for video in videos:
        has_box_T = video.frame_T >= 0
        level_FSS = levels(video.map_TKK[has_box_T])
        for box_F4, threshold in zip(box_PF4, THRESHOLDS, strict=True):
            box_F4[video.frame_T[has_box_T]] = largest_boxes(level_FSS, threshold)
    return np.stack([_nearest_iou(box_F4, actor) for box_F4 in box_PF4])


def _nearest_iou(box_F4: np.ndarray, actor: Actor) -> np.ndarray:
    return actor.nearest(intersection_over_union(actor.of_boxes(box_F4), actor.box_R4))


def _static_sweep(map_KK: np.ndarray, actor: Actor) -> np.ndarray:
    """Return the IoU of a map that is the same in all frames at each threshold, (P, F)."""
    boxes = [largest_boxes(levels(map_KK[None]), threshold) for threshold in THRESHOLDS]
    return np.stack([_nearest_iou(np.broadcast_to(box_14, (len(actor.clip_F), 4)), actor) for box_14 in boxes])


def _counts(test: pd.DataFrame, num_frames: int, actor: Actor, num_videos: int) -> dict[str, int]:
    boxed, valid = len(actor.clip_F), int(valid_mask(test["valid_frames"].to_numpy(), num_frames).sum())
    several = int((actor.count_boxes() > 1).sum())
    return {"videos": num_videos, "frames": boxed, "frames_with_several": several, "frames_without": valid - boxed}


def _tubes(test: pd.DataFrame, videos: Sequence[_Video], actor: Actor, threshold: float, iou_F: np.ndarray) -> pd.DataFrame:
    """Return `Localisation.tubes`."""
    clips = test["clip"].to_numpy()
    truth_F = [box_R4.ravel().tolist() for box_R4 in np.split(actor.box_R4, actor.first_F[1:])]
    tables = []
    for video in videos:
        box_T4 = largest_boxes(levels(video.map_TKK), threshold)
        columns = {"clip": clips[video.clip_T], "frame": video.time_T} | dict(zip(CORNERS, box_T4.T, strict=True))
        columns["iou"] = np.where(video.frame_T >= 0, iou_F[video.frame_T], np.nan)
        truth = [truth_F[frame] if frame >= 0 else [] for frame in video.frame_T]
        tables.append(pd.DataFrame(columns | {"truth": truth}))
    return pd.concat(tables, ignore_index=True)
