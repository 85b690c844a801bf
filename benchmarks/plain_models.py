"""The two models as one writes them first: everything inside the loop over frames, in fp32."""

# B batch, T frames of a clip, K grid side, I = K * K cells, D channels, U units, C classes

from __future__ import annotations

import torch
from torch import nn


class PlainALSTM(nn.Module):
    """ALSTM around `nn.LSTMCell`; the same layers as `pipeline_lib.networks.alstm`."""

    def __init__(self, *, channels: int, grid: int, num_classes: int, units: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.initial_h, self.initial_c = nn.Linear(channels, units), nn.Linear(channels, units)
        self.score_features, self.score_state = nn.Linear(channels, units // 2), nn.Linear(units, units // 2)
        self.score = nn.Linear(units // 2, grid * grid)
        self.cell = nn.LSTMCell(channels, units)
        self.head = nn.Linear(units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> torch.Tensor:
        """Return logits_BTC."""
        features_BTID = features_BTKKD.flatten(2, 3)
        mask_BT = torch.arange(features_BTID.shape[1], device=features_BTID.device) < valid_steps_B[:, None]
        mean_BD = (features_BTID.mean(dim=2) * mask_BT[:, :, None]).sum(dim=1) / valid_steps_B[:, None]
        h_BU = torch.tanh(self.initial_h(self.dropout(mean_BD)))
        c_BU = torch.tanh(self.initial_c(self.dropout(mean_BD)))
        logits = []
        for frame in range(features_BTID.shape[1]):
            features_BID = features_BTID[:, frame]
            pooled_BD = features_BID.mean(dim=1)
            hidden_BV = torch.tanh(self.score_features(self.dropout(pooled_BD)) + self.score_state(self.dropout(h_BU)))
            attention_BI = torch.softmax(self.score(self.dropout(hidden_BV)), dim=1)
            glimpse_BD = (attention_BI[:, :, None] * features_BID).sum(dim=1)
            h_BU, c_BU = self.cell(glimpse_BD, (h_BU, c_BU))
            logits.append(self.head(self.dropout(h_BU)))
        return torch.stack(logits, dim=1)


class PlainConvALSTM(nn.Module):
    """ConvALSTM of `nn.Conv2d`; the same layers as `pipeline_lib.networks.conv_alstm`."""

    def __init__(self, *, channels: int, grid: int, num_classes: int, units: int, dropout: float) -> None:
        super().__init__()
        self.units = units
        self.dropout = nn.Dropout(dropout)
        self.score_features, self.score_state = nn.Conv2d(channels, units, 1), nn.Conv2d(units, units, 1)
        self.score = nn.Conv2d(units, 1, 1)
        self.gates = nn.Conv2d(channels + units, 4 * units, 3, padding=1)
        self.head = nn.Linear(grid * grid * units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> torch.Tensor:
        """Return logits_BTC."""
        features_BTDKK = features_BTKKD.permute(0, 1, 4, 2, 3)
        batch, frames, _, grid, _ = features_BTDKK.shape
        h_BUKK = c_BUKK = features_BTDKK.new_zeros(batch, self.units, grid, grid)
        logits = []
        for frame in range(frames):
            features_BDKK = features_BTDKK[:, frame]
            score_B1KK = self.score(torch.tanh(self.score_features(features_BDKK) + self.score_state(h_BUKK)))
            attention_B1KK = torch.softmax(score_B1KK.flatten(1), dim=1).view_as(score_B1KK)
            gates = self.gates(torch.cat([attention_B1KK * features_BDKK, h_BUKK], dim=1))
            i, f, g, o = gates.chunk(4, dim=1)
            c_BUKK = torch.sigmoid(f) * c_BUKK + torch.sigmoid(i) * torch.tanh(g)
            h_BUKK = torch.sigmoid(o) * torch.tanh(c_BUKK)
            logits.append(self.head(self.dropout(h_BUKK.flatten(1))))
        return torch.stack(logits, dim=1)
