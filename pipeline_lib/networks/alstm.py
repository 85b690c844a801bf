"""Attention LSTM (ALSTM) of Sharma et al. 2016, as the article has it: state carried, h0 and c0 from the whole clip.

    h_0 = tanh(W_h m), c_0 = tanh(W_c m)            m: mean of X over the valid frames and all cells
    a_t = softmax(s(X_t, h_t-1))                    one score a cell, see `pipeline_lib.networks.attention`
    x_t = sum_i a_ti X_ti
    h_t, c_t = LSTM(x_t, h_t-1, c_t-1)
    y_t = W_y h_t                                   logits

Biases are left out above. Every linear layer's input passes dropout, as the article says. Variants:

- `layers`: LSTMs one on the other, each with an h_0 and a c_0; h of the last decides attention and label.
- `carry_state: false`: what the tutorial's code computes. It calls the LSTM anew for every frame, h_t, c_t = LSTM(x_t, 0, 0),
  so that h_t-1 reaches nothing but the attention of the next frame. W_c and the recurrent weights then do nothing; they stay,
  as they do in the code.
- `scorer: null`: no attention, x_t = mean_i X_ti. This is the baseline `lrcn` (Donahue et al. 2015): what is left of ALSTM
  when attention is taken away, and nothing else is.
"""

# B batch, T steps of a clip, K grid side, I = K * K cells, D channels, U units, C classes

from __future__ import annotations

import torch
from torch import nn

from pipeline_lib.networks.alstm_op import attention_lstm
from pipeline_lib.networks.attention import Attention, Scorer, uniform
from pipeline_lib.networks.dropout import Dropout
from pipeline_lib.networks.lstm import LSTMStack, glorot_linear
from pipeline_lib.networks.outputs import ModelOutputs, uniform_importance, valid_mask


class ALSTM(nn.Module):
    """Soft attention over the cells of each frame, a glimpse of their weighted sum, an LSTM over the glimpses."""

    def __init__(
        self,
        *,
        channels: int,
        grid: int,
        num_classes: int,
        units: int,
        dropout: float,
        layers: int = 1,
        scorer: Scorer | None = "pooled",
        uniform_start: bool = False,
        carry_state: bool = True,
    ) -> None:
        """Build with random weights; at the article's sizes (512, 7, 51, 512) there are 2,925,924 parameters."""
        super().__init__()
        self.carry_state = carry_state
        self.dropout = Dropout(dropout)
        self.initial_h = nn.ModuleList(glorot_linear(channels, units) for _ in range(layers))
        self.initial_c = nn.ModuleList(glorot_linear(channels, units) for _ in range(layers))
        self.attention: Attention | None = None
        if scorer:
            self.attention = Attention(
                scorer,
                channels=channels,
                num_cells=grid * grid,
                width=units // 2,
                units=units,
                dropout=dropout,
                uniform_start=uniform_start,
            )
        self.cells = LSTMStack(channels, units, layers)
        self.head = glorot_linear(units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
        """Return the model's outputs; `importance_BT` is uniform.

        Frames past `valid_steps_B` have outputs too, to be left out by the caller; they do not touch the valid ones.
        """
        features_BTID = features_BTKKD.flatten(2, 3)
        pooled_BTD = features_BTID.mean(dim=2)
        mean_BD = mean_of_valid(pooled_BTD, valid_steps_B)
        states = [
            (torch.tanh(to_h(self.dropout(mean_BD))), torch.tanh(to_c(self.dropout(mean_BD))))
            for to_h, to_c in zip(self.initial_h, self.initial_c, strict=True)
        ]
        if self.attention is None:
            step = self.cells.start(pooled_BTD.shape[1], states, carry_state=self.carry_state)
            outputs_BTU = torch.stack([step(pooled_BD) for pooled_BD in pooled_BTD.unbind(1)], dim=1)
            attention_BTKK = uniform(features_BTKKD)
        else:
            ahead = self.attention.look_ahead(features_BTID, pooled_BTD).transpose(0, 1)
            outputs_BTU, attention_BTI = attention_lstm(
                self.attention, self.cells, features_BTID, ahead, states, carry_state=self.carry_state
            )
            attention_BTKK = attention_BTI.reshape(features_BTKKD.shape[:-1])
        logits_BTC = self.head(self.dropout(outputs_BTU))
        return ModelOutputs(logits_BTC, attention_BTKK, uniform_importance(attention_BTKK, valid_steps_B))


def mean_of_valid(pooled_BTD: torch.Tensor, valid_steps_B: torch.Tensor) -> torch.Tensor:
    """Return mean_BD over the valid frames of each clip."""
    valid_BT1 = valid_mask(valid_steps_B, pooled_BTD.shape[1]).unsqueeze(2)
    return (pooled_BTD * valid_BT1).sum(dim=1) / valid_steps_B[:, None]
