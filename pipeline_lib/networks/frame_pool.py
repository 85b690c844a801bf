"""Baselines without recurrence: frames are classified independently, and their predictions are pooled (late fusion).

    mean_pool        y_t = W_y mean_i(X_ti)
    attention_pool   y_t = W_y sum_i a_ti X_ti,   a_t = softmax(s(X_t))

ALSTM differs from `attention_pool` by its state, and `attention_pool` from `mean_pool` by attention.
"""

# B batch, T steps of a clip, K grid side, I = K * K cells, D channels, C classes

from __future__ import annotations

import torch
from torch import nn

from pipeline_lib.networks.attention import Attention, Scorer, uniform
from pipeline_lib.networks.dropout import Dropout
from pipeline_lib.networks.lstm import glorot_linear
from pipeline_lib.networks.outputs import ModelOutputs, uniform_importance


class FramePool(nn.Module):
    """A linear layer on the mean or the attention-weighted sum of each frame's cells."""

    def __init__(
        self,
        *,
        channels: int,
        grid: int,
        num_classes: int,
        dropout: float,
        units: int | None = None,
        scorer: Scorer | None = None,
        uniform_start: bool = False,
    ) -> None:
        """Initialise random weights. Without a scorer there is no attention; with one, its width is `units` / 2 as in ALSTM."""
        super().__init__()
        self.dropout = Dropout(dropout)
        self.attention: Attention | None = None
        if scorer:
            assert units is not None
            self.attention = Attention(
                scorer,
                channels=channels,
                num_cells=grid * grid,
                width=units // 2,
                units=None,
                dropout=dropout,
                uniform_start=uniform_start,
            )
        self.head = glorot_linear(channels, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
        """Return the model's outputs; `importance_BT` is uniform."""
        features_BTID = features_BTKKD.flatten(2, 3)
        if self.attention is None:
            glimpse_BTD, attention_BTKK = features_BTID.mean(dim=2), uniform(features_BTKKD)
        else:
            attention_BTI = self.attention(self.attention.look_ahead(features_BTID))
            glimpse_BTD = torch.einsum("bti,btid->btd", attention_BTI, features_BTID)
            attention_BTKK = attention_BTI.view(features_BTKKD.shape[:-1])
        logits_BTC = self.head(self.dropout(glimpse_BTD))
        return ModelOutputs(logits_BTC, attention_BTKK, uniform_importance(attention_BTKK, valid_steps_B))
