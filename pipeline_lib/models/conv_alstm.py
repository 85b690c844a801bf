"""Convolutional Attention LSTM (ConvALSTM) of Li et al. 2018, as the article has it: state carried, kept as maps.

    s_t = w_3 * tanh(W_1 * h_t-1 + W_2 * X_t)       1x1 convolutions, one score a cell
    a_t = softmax(s_t)                              over the cells
    x_t = a_t X_t                                   a map again: weighted, not summed
    h_t, c_t = ConvLSTM(x_t, h_t-1, c_t-1)          3x3 convolutions; h_0 = c_0 = 0
    y_t = W_y flatten(h_t)                          logits

Biases are left out above. The only fully connected layer is the last, and the only dropout is on its input. Glimpses are
of the scale of X / K^2, since the attention sums to 1 and nothing sums the cells up again: the article's choice, kept.
"""

# B batch, T frames of a clip, K grid side, D channels, U units, C classes

from __future__ import annotations

import torch
from torch import nn

from pipeline_lib.models.lstm import ConvLSTMCell, glorot_linear


class ConvALSTM(nn.Module):
    """Soft attention over the cells of each frame, and a convolutional LSTM over the weighted frames."""

    def __init__(self, *, channels: int, grid: int, num_classes: int, units: int, dropout: float) -> None:
        """Build with random weights; at the article's sizes (512, 7, 51, 256) there are 7,916,084 parameters."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        # A 1x1 convolution is a linear layer on the channels, which are the last axis here.
        self.score_features = glorot_linear(channels, units)
        self.score_state = glorot_linear(units, units)
        self.score = glorot_linear(units, 1)
        self.cell = ConvLSTMCell(channels, units)
        self.head = glorot_linear(grid * grid * units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_frames_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits_BTC and attention_BTKK (sums to 1 over the cells of each frame).

        Frames past `valid_frames_B` have outputs too, to be left out by the caller; they do not touch the valid ones.
        """
        features_TBKKD = features_BTKKD.transpose(0, 1).contiguous()  # frames then are channels-last images
        feature_scores_TBKKU = self.score_features(features_TBKKD)  # independent of the state
        joint_weight = self.cell.joint_weight()
        h_BUKK = c_BUKK = self._initial_state(features_TBKKD[0])
        states, attentions = [], []
        for features_BKKD, feature_score_BKKU in zip(features_TBKKD, feature_scores_TBKKU, strict=True):
            score_BKK1 = self.score(torch.tanh(feature_score_BKKU + self.score_state(h_BUKK.permute(0, 2, 3, 1))))
            attention_BKK1 = torch.softmax(score_BKK1.flatten(1), dim=1).view_as(score_BKK1)
            glimpse_BDKK = (attention_BKK1 * features_BKKD).permute(0, 3, 1, 2)
            h_BUKK, c_BUKK = self.cell(glimpse_BDKK, (h_BUKK, c_BUKK), joint_weight)
            states.append(h_BUKK.permute(0, 2, 3, 1).flatten(1))
            attentions.append(attention_BKK1.squeeze(3))
        logits_BTC = self.head(self.dropout(torch.stack(states, dim=1)))
        return logits_BTC, torch.stack(attentions, dim=1)

    def _initial_state(self, features_BKKD: torch.Tensor) -> torch.Tensor:
        size = (*features_BKKD.shape[:3], self.cell.units)
        return features_BKKD.new_zeros(size).permute(0, 3, 1, 2)
