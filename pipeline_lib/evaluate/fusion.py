"""Score fusion: combine the class probabilities of several models.

- `mean`: the mean of the members' probabilities, frame by frame (late fusion of Simonyan and Zisserman 2014).
- `weights`: a weighted mean, frame by frame. Weights that are not given maximise the likelihood of the validation videos.
- `svm`: a linear SVM on the members' mean probabilities of a video, each L2-normalised, then stacked (same paper). It is one
  classifier against the rest for each class. The penalty is chosen by cross-validation over groups of validation videos. It
  decides once for a whole video: all frames and clips of the video have that prediction, and its probabilities are the softmax
  of the decision values, which is not calibrated.

Only validation scores are fitted: those of training videos are overconfident, and test scores are what is reported. The
members' checkpoints were chosen on the same validation videos, so these scores are slightly optimistic too, for all members
alike. If a class has no validation video, an SVM could never predict it, so `svm` falls back to the mean and says so.
"""

# M members, N clips, T frames of a clip, V videos, C classes, S = M * C stacked scores, K grid side

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import softmax

from pipeline_lib.evaluate.linear_svm import LinearSvm, fit_svm, unit_length
from pipeline_lib.params import FusionParams
from pipeline_lib.training.voting import valid_mask

logger = logging.getLogger(__name__)

INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for the SVM's C, strongest penalty first."""
DEFAULT_INVERSE_PENALTY = 0.1
"""The SVM's C if the validation videos are too few for cross-validation."""
MAX_CV_FOLDS = 5
MAX_ITERATIONS = 10_000
"""Maximum number of steps of the fit of weights; it needs tens."""
TOLERANCE = 1e-9
"""Change of a weight at which its fit ends."""
SMALLEST = 1e-12
"""Lower bound of probabilities in the likelihood, and of the sums that attention is divided by."""


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


@dataclass(frozen=True)
class VideoScores:
    """Members' mean probabilities of labelled videos."""

    probability_MVC: np.ndarray
    label_V: np.ndarray
    """Class indices."""
    group_V: np.ndarray


def fit_fusion(params: FusionParams, validation: VideoScores | None) -> FittedFusion:
    """Fit a fusion to validation videos, as far as its method has something to fit."""
    equal = (1 / len(params.members),) * len(params.members)
    if params.weights:
        total = sum(params.weights)
        return FittedFusion(method="weights", weights=tuple(weight / total for weight in params.weights))
    if params.method == "mean":
        return FittedFusion(method="mean", weights=equal)
    if note := _explain_fallback(params.method, validation):
        logger.warning("%s of %s: %s; using the mean", params.method, ", ".join(params.members), note)
        return FittedFusion(method="mean", weights=equal, note=note)
    assert validation is not None
    if params.method == "weights":
        return FittedFusion(method="weights", weights=tuple(fit_weights(validation).tolist()))
    svm = fit_svm(
        stack_scores(validation.probability_MVC),
        validation.label_V,
        validation.group_V,
        inverse_penalties=INVERSE_PENALTIES,
        default=DEFAULT_INVERSE_PENALTY,
        cv_folds=MAX_CV_FOLDS,
    )
    return FittedFusion(method="svm", weights=equal, svm=svm)


def _explain_fallback(method: str, validation: VideoScores | None) -> str | None:
    if validation is None:
        return "there are no validation videos to fit it to"
    num_classes = validation.probability_MVC.shape[2]
    num_missing = num_classes - len(np.unique(validation.label_V))
    return f"{num_missing} of {num_classes} classes have no validation video" if method == "svm" and num_missing else None


def fit_weights(validation: VideoScores) -> np.ndarray:
    """Return weight_M, which sums to 1 and maximises the likelihood of the videos' classes, by expectation maximisation.

    The weighted mean is a mixture of the members. Its log likelihood is concave in the weights, so there is one maximum.
    """
    label_1V1 = validation.label_V[None, :, None]
    true_MV = np.maximum(np.take_along_axis(validation.probability_MVC, label_1V1, axis=2)[:, :, 0], SMALLEST)
    weight_M = np.full(len(true_MV), 1 / len(true_MV))
    for _ in range(MAX_ITERATIONS):
        share_MV = weight_M[:, None] * true_MV
        before_M, weight_M = weight_M, (share_MV / share_MV.sum(axis=0)).mean(axis=1)
        if np.abs(weight_M - before_M).max() < TOLERANCE:
            break
    return weight_M


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


def resample_maps(maps_NTKK: np.ndarray, grid: int) -> np.ndarray:
    """Return maps on another grid. Each cell's attention is spread evenly over its area, so that sums are kept."""
    before = maps_NTKK.shape[2]
    if before == grid:
        return maps_NTKK
    edge_new, edge_old = np.arange(grid + 1) / grid, np.arange(before + 1) / before
    ends = np.minimum(edge_new[1:, None], edge_old[None, 1:]), np.maximum(edge_new[:-1, None], edge_old[None, :-1])
    share = np.maximum(ends[0] - ends[1], 0) * before  # (new, old)
    resampled_NTKK: np.ndarray = share @ maps_NTKK @ share.T
    return resampled_NTKK
