"""Attention LSTM (ALSTM) of Sharma et al. 2016, as the article has it: state carried, h0 and c0 from the whole clip.

    h_0 = tanh(W_h m), c_0 = tanh(W_c m)            m: mean of X over the valid frames and all cells
    s_t = W_3 tanh(W_1 mean_i(X_ti) + W_2 h_t-1)    one score a cell
    a_t = softmax(s_t)
    x_t = sum_i a_ti X_ti
    h_t, c_t = LSTM(x_t, h_t-1, c_t-1)
    y_t = W_y h_t                                   logits

Biases are left out above. Every linear layer's input passes dropout, as the article says; the tutorial's own code never
switched it on, reset the LSTM's state at every frame and never used c_0 (reference: issue 3, `hmdb51_tutorial_code`).
"""

# B batch, T frames of a clip, K grid side, D channels, U units, C classes

from __future__ import annotations

import torch
from torch import nn

from pipeline_lib.models.lstm import LSTMCell, glorot_linear


class ALSTM(nn.Module):
    """Soft attention over the cells of each frame, a glimpse of their weighted sum, an LSTM over the glimpses."""

    def __init__(self, *, channels: int, grid: int, num_classes: int, units: int, dropout: float) -> None:
        """Build with random weights; at the article's sizes (512, 7, 51, 512) there are 2,925,924 parameters."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.initial_h = glorot_linear(channels, units)
        self.initial_c = glorot_linear(channels, units)
        self.score_features = glorot_linear(channels, units // 2)
        self.score_state = glorot_linear(units, units // 2)
        self.score = glorot_linear(units // 2, grid * grid)
        self.cell = LSTMCell(channels, units)
        self.head = glorot_linear(units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_frames_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits_BTC and attention_BTKK (sums to 1 over the cells of each frame).

        Frames past `valid_frames_B` have outputs too, to be left out by the caller; they do not touch the valid ones.
        """
        features_BTID = features_BTKKD.flatten(2, 3)  # I = K * K cells
        pooled_BTD = features_BTID.mean(dim=2)
        h_BU, c_BU = self._initial_state(pooled_BTD, valid_frames_B)
        feature_scores_BTV = self.score_features(self.dropout(pooled_BTD))  # V = U / 2, independent of the state
        states, attentions = [], []
        for features_BID, feature_score_BV in zip(features_BTID.unbind(1), feature_scores_BTV.unbind(1), strict=True):
            score_BV = torch.tanh(feature_score_BV + self.score_state(self.dropout(h_BU)))
            attention_BI = torch.softmax(self.score(self.dropout(score_BV)), dim=1)
            glimpse_BD = torch.bmm(attention_BI.unsqueeze(1), features_BID).squeeze(1)
            h_BU, c_BU = self.cell(glimpse_BD, (h_BU, c_BU))
            states.append(h_BU)
            attentions.append(attention_BI)
        logits_BTC = self.head(self.dropout(torch.stack(states, dim=1)))
        return logits_BTC, torch.stack(attentions, dim=1).view(features_BTKKD.shape[:-1])

    def _initial_state(self, pooled_BTD: torch.Tensor, valid_frames_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frames_T = torch.arange(pooled_BTD.shape[1], device=pooled_BTD.device)
        valid_BT1 = (frames_T < valid_frames_B[:, None]).unsqueeze(2)
        mean_BD = (pooled_BTD * valid_BT1).sum(dim=1) / valid_frames_B[:, None]
        h_BU = torch.tanh(self.initial_h(self.dropout(mean_BD)))
        c_BU = torch.tanh(self.initial_c(self.dropout(mean_BD)))
        return h_BU, c_BU
