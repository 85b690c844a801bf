"""What training minimises: cross-entropy of every valid frame, and for ALSTM a price on attention that stays in one place."""

# B batch, T frames of a clip, K grid side, C classes

from __future__ import annotations

import torch
from torch.nn import functional


def valid_mask(valid_frames_B: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Return mask_BT: true for real frames, false for padding."""
    return torch.arange(num_frames, device=valid_frames_B.device) < valid_frames_B[:, None]


def frame_cross_entropy(logits_BTC: torch.Tensor, labels_B: torch.Tensor, valid_frames_B: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over all valid frames of the batch; every frame carries its clip's label."""
    mask_BT = valid_mask(valid_frames_B, logits_BTC.shape[1])
    labels_BT = labels_B[:, None].expand(mask_BT.shape)
    return functional.cross_entropy(logits_BTC[mask_BT].float(), labels_BT[mask_BT])


def coverage_penalty(attention_BTKK: torch.Tensor, valid_frames_B: torch.Tensor) -> torch.Tensor:
    """Mean over clips and cells of (1 - K^2 / T * sum_t a_ti)^2, over the T valid frames of each clip.

    It is 0 when every cell has had an equal share of attention by the end of the clip, and K^2 - 1 when one cell has had
    it all; it depends neither on the batch size, nor on the length of a clip, nor much on the grid.

    The article, after Xu et al. 2015, asks for sum_t a_ti = 1 in every cell. Attention sums to 1 over the cells, hence to T
    over the clip, and 30 frames cannot give 49 cells 1 each: the target here is what they can give, T / K^2, and the
    distance is relative to it. The tutorial's code sums (1 - sum_t a_ti)^2 over cells and batch and, by a slip, multiplies
    by the batch size over T: at its best that is 31 (cross-entropy starts at 3.9), so its weight of 0.5 is not this one's.
    """
    num_cells = attention_BTKK.shape[2] * attention_BTKK.shape[3]
    mask_BT = valid_mask(valid_frames_B, attention_BTKK.shape[1])
    attention_BTI = attention_BTKK.flatten(2).float() * mask_BT.unsqueeze(2)
    share_BI = attention_BTI.sum(dim=1) * num_cells / valid_frames_B[:, None]
    return (1 - share_BI).square().mean()
