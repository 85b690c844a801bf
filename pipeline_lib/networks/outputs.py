"""The outputs that all models share, and the mask of valid steps."""

# B batch, T steps of a clip, K grid side, C classes

from __future__ import annotations

from typing import NamedTuple

import torch


class ModelOutputs(NamedTuple):
    """Outputs of a model for a batch of clips."""

    logits_BTC: torch.Tensor
    attention_BTKK: torch.Tensor
    """Sums to 1 over the cells of each step; uniform for models without attention over cells."""
    importance_BT: torch.Tensor
    """Sums to 1 over the valid steps and is 0 for padding; uniform for models without attention over time."""


def valid_mask(valid_steps_B: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Return mask_BT: True for real steps, False for padding."""
    return torch.arange(num_steps, device=valid_steps_B.device) < valid_steps_B[:, None]


def uniform_importance(attention_BTKK: torch.Tensor, valid_steps_B: torch.Tensor) -> torch.Tensor:
    """Return uniform importance_BT, in the precision of the attention, for a model without attention over time."""
    mask_BT = valid_mask(valid_steps_B, attention_BTKK.shape[1])
    return mask_BT.to(attention_BTKK.dtype) / valid_steps_B[:, None]
