"""Training losses: cross-entropy of the valid frames, and the coverage penalty on attention (doubly stochastic attention)."""

# B batch, T steps of a clip, K grid side, I = K * K cells, C classes

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from pipeline_lib.networks.outputs import valid_mask


def frame_cross_entropy(logits_BTC: torch.Tensor, labels_B: torch.Tensor, valid_steps_B: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over all valid frames of the batch; each frame has its clip's label."""
    mask_BT = valid_mask(valid_steps_B, logits_BTC.shape[1])
    labels_BT = labels_B[:, None].expand(mask_BT.shape)
    losses_BT = functional.cross_entropy(logits_BTC.float().flatten(0, 1), labels_BT.flatten(), reduction="none").view_as(
        mask_BT
    )
    return torch.where(mask_BT, losses_BT, 0).sum() / mask_BT.sum()


def calibrated_cross_entropy(logits_BTC: torch.Tensor, labels_B: torch.Tensor, valid_steps_B: torch.Tensor) -> float:
    """Return `frame_cross_entropy` after temperature scaling with the best temperature (Guo et al. 2017).

    On small collections the validation cross-entropy rises early because of overconfidence, while accuracy still improves.
    This loss is not affected by overconfidence. Uninformative logits score ln C. The result is nan if a loss is not finite.
    """

    def loss_at(inverse_temperature: float) -> float:
        return frame_cross_entropy(logits_BTC * inverse_temperature, labels_B, valid_steps_B).item()

    if not math.isfinite(loss_at(1.0)):
        return math.nan
    return float(minimize_scalar(loss_at, bounds=(0.0, 10.0), method="bounded", options={"xatol": 1e-3}).fun)


def coverage_penalty(attention_BTKK: torch.Tensor, valid_steps_B: torch.Tensor) -> torch.Tensor:
    """Return the mean over clips of 1/T * sum_i (sum_t a_ti - T / K^2)^2, over the T valid frames of each clip.

    Xu et al. 2015 and Sharma et al. 2016 add sum_i (1 - sum_t a_ti)^2 to the cross-entropy summed over T frames. Here both
    are divided by T. Attention sums to 1 over the cells and hence to T over the clip, so a cell's mean is T / K^2 and not 1.
    With T / K^2 as the target, the penalty differs from theirs by the constant 1/T * K^2 (1 - T / K^2)^2: the gradient is the
    same, and the minimum is 0.

    The tutorial's code multiplies by B where it should divide: it adds lambda * B / T * sum_b sum_i (1 - sum_t a_bti)^2 to the
    cross-entropy averaged over T. Its lambda is therefore B^2 times as strong as this one (B = 16: its 0.5 is 128 here).

    Clips without valid frames, which pad a batch, are ignored.
    """
    num_cells = attention_BTKK.shape[2] * attention_BTKK.shape[3]
    mask_BT = valid_mask(valid_steps_B, attention_BTKK.shape[1])
    attention_BI = (attention_BTKK.flatten(2).float() * mask_BT.unsqueeze(2)).sum(dim=1)
    excess_BI = attention_BI - valid_steps_B[:, None] / num_cells
    penalty_B = excess_BI.square().sum(dim=1) / valid_steps_B.clamp(min=1)
    return penalty_B.sum() / (valid_steps_B > 0).sum()
