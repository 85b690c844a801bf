"""Score fusion: combine the class probabilities of several models.

- `mean`: the mean of the members' probabilities, frame by frame (late fusion of Simonyan and Zisserman 2014).
- `weights`: a weighted mean, frame by frame.
- `svm`: a linear SVM on the members' mean probabilities of a video, each L2-normalised, then stacked (same paper). It decides
  once for a whole video: all frames and clips of the video have that prediction, and its probabilities are the softmax of the
  decision values, which is not calibrated.

`pipeline_lib.evaluate.fusion_fitting` fits weights and SVMs.
"""

# N clips, T frames of a clip, M members, V videos, C classes, S = M * C stacked scores, K grid side

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import softmax

from pipeline_lib.training.linear_svm import LinearSvm, unit_length
from pipeline_lib.training.voting import valid_mask

SMALLEST = 1e-12
"""Lower bound of a map's share, so that a map whose share is 0 still counts where it is the only one."""


class FittedFusion(BaseModel):
    """A fusion that can be applied to the members' probabilities; JSON without loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: Literal["mean", "weights", "svm"]
    """The method that is applied, which after a fallback is not the one asked for."""
    weights: tuple[float, ...]
    """Weights of the members; they sum to 1. With `svm` they are equal, and only attention maps use them."""
    svm: LinearSvm | None = None
    note: str | None = None
    """Why the method is not the one asked for."""


def stack_scores(probability_MVC: np.ndarray) -> np.ndarray:
    """Return score_VS: each member's probabilities, L2-normalised, side by side."""
    return np.concatenate(list(unit_length(probability_MVC)), axis=1)


def video_means(probability_NTC: np.ndarray, valid_frames_N: np.ndarray, video_N: np.ndarray) -> np.ndarray:
    """Return the mean probabilities of each video's valid frames, (V, C); `video_N` holds the index of each clip's video."""
    valid_NT1 = valid_mask(valid_frames_N, probability_NTC.shape[1])[:, :, None]
    sum_NC = np.where(valid_NT1, probability_NTC.astype(np.float64), 0.0).sum(axis=1)
    sum_VC = np.zeros((video_N.max() + 1, sum_NC.shape[1]))
    np.add.at(sum_VC, video_N, sum_NC)
    mean_VC: np.ndarray = sum_VC / np.bincount(video_N, weights=valid_frames_N)[:, None]
    return mean_VC


def fuse(fitted: FittedFusion, members: Sequence[np.ndarray], valid_frames_N: np.ndarray, video_N: np.ndarray) -> np.ndarray:
    """Return the fused probability_NTC (fp32) of clips.

    Args:
        fitted: the fusion.
        members: each member's probability_NTC.
        valid_frames_N: number of valid frames of each clip.
        video_N: index of each clip's video.
    """
    if fitted.svm:
        mean_MVC = np.stack([video_means(member_NTC, valid_frames_N, video_N) for member_NTC in members])
        decision_VC = fitted.svm.decide(stack_scores(mean_MVC))
        probability_NC = softmax(decision_VC, axis=1)[video_N]
        return np.repeat(probability_NC[:, None], members[0].shape[1], axis=1).astype(np.float32)
    fused_NTC = np.zeros(members[0].shape)
    for weight, member_NTC in zip(fitted.weights, members, strict=True):
        fused_NTC += weight * member_NTC.astype(np.float64)
    return fused_NTC.astype(np.float32)


def fuse_attention(
    weights: Sequence[float],
    members: Sequence[np.ndarray],
    attention: Sequence[np.ndarray | None],
    predicted_NT: np.ndarray,
) -> np.ndarray | None:
    """Return the members' attention_NTKK (fp32), averaged with weight times probability of the frame's predicted class.

    A map then counts as much as its model contributes to the prediction. Maps of smaller grids are resampled to the largest.

    Args:
        weights: weights of the members.
        members: each member's probability_NTC.
        attention: each member's attention_NTKK; None for a member without attention, which is left out.
        predicted_NT: class indices that the fusion predicts.

    Returns:
        None if no member has attention.
    """
    parts = zip(weights, members, attention, strict=True)
    known = [(weight, member_NTC, maps_NTKK) for weight, member_NTC, maps_NTKK in parts if maps_NTKK is not None]
    if not known:
        return None
    grid = max(maps_NTKK.shape[2] for _, _, maps_NTKK in known)
    total_NTKK, total_NT = np.zeros((*predicted_NT.shape, grid, grid)), np.zeros(predicted_NT.shape)
    for weight, member_NTC, maps_NTKK in known:
        own_NT: np.ndarray = np.take_along_axis(member_NTC, predicted_NT[:, :, None], axis=2)[:, :, 0]
        share_NT = np.maximum(weight * own_NT.astype(np.float64), SMALLEST)
        total_NTKK += share_NT[:, :, None, None] * resample_maps(maps_NTKK, grid)
        total_NT += share_NT
    return (total_NTKK / total_NT[:, :, None, None]).astype(np.float32)


def resample_maps(maps: np.ndarray, grid: int) -> np.ndarray:
    """Return maps (... x K x K) on another grid. Each cell's attention is spread evenly over its area: sums are kept."""
    before = maps.shape[-1]
    if before == grid:
        return maps
    edge_new, edge_old = np.arange(grid + 1) / grid, np.arange(before + 1) / before
    ends = np.minimum(edge_new[1:, None], edge_old[None, 1:]), np.maximum(edge_new[:-1, None], edge_old[None, :-1])
    share = np.maximum(ends[0] - ends[1], 0) * before  # (new, old)
    resampled: np.ndarray = share @ maps @ share.T
    return resampled
