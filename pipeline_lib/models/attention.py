"""How attention scores the cells of a frame, and what a frame's cells become under it.

Scores come from the frame and, in a recurrent model, from the state h before it; a softmax over the cells makes them attention:

    pooled  s = W_3 tanh(W_1 mean_i(X_i) + W_2 h)     one score a cell from the whole frame (the article's ALSTM)
    local   s_i = w_3 * tanh(W_1 X_i + W_2 h_i)       each cell from its own features (Sharma's code, Li et al. 2018)

The half that depends on the features alone is computed for all frames at once, before the loop over time. Dropout is on the
input of every layer; where that has cells, a channel is dropped in all of them (Tompson et al. 2015), as neighbouring cells
would give a single one away, and drawing fewer random numbers halves the time of a step on a CPU.
"""

# B batch, T frames of a clip, I = K * K cells, D channels, U units of the state, V width of the scorer

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from pipeline_lib.models.lstm import glorot_linear

Scorer = Literal["pooled", "local"]


class Attention(nn.Module):
    """Soft attention over the cells of a frame."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        channels: int,
        num_cells: int,
        width: int,
        units: int | None,
        dropout: float,
        uniform_start: bool,
    ) -> None:
        """Build with random weights; `units` is the width of the state that takes part, None if there is none.

        With `uniform_start` the last layer's weights are zero instead: all cells count alike until training finds better.
        """
        super().__init__()
        self.scorer = scorer
        self.dropout = nn.Dropout(dropout)
        self.features = glorot_linear(channels, width)
        self.state = glorot_linear(units, width) if units else None
        self.score = glorot_linear(width, num_cells if scorer == "pooled" else 1)
        if uniform_start:
            nn.init.zeros_(self.score.weight)

    def look_ahead(self, features_BTID: torch.Tensor) -> torch.Tensor:
        """Return the features' half of the scores: BTV if pooled, BTIV if local."""
        seen = features_BTID.mean(dim=2) if self.scorer == "pooled" else features_BTID
        return self.features(self._drop(seen))

    def forward(self, ahead: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
        """Return attention over the cells, the last axis, from one frame's or all frames' `look_ahead`.

        `state` is h before the frame: BU for the frame as a whole, BIU for a state that has cells itself.
        """
        if self.state is not None:
            assert state is not None
            from_state = self.state(self._drop(state) if state.ndim == ahead.ndim else self.dropout(state))
            ahead = ahead + (from_state.unsqueeze(-2) if from_state.ndim < ahead.ndim else from_state)
        scores = self.score(self._drop(torch.tanh(ahead)))
        return torch.softmax(scores if self.scorer == "pooled" else scores.squeeze(-1), dim=-1)

    def _drop(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply dropout, to whole channels where the last axis but one is of cells."""
        if self.scorer == "pooled" or not self.training or not self.dropout.p:
            return self.dropout(inputs)
        one_cell = inputs.new_ones((*inputs.shape[:-2], 1, inputs.shape[-1]))
        return inputs * self.dropout(one_cell)


def glimpse(attention_BI: torch.Tensor, features_BID: torch.Tensor) -> torch.Tensor:
    """Return the sum of a frame's cells weighted by attention, glimpse_BD."""
    return torch.bmm(attention_BI.unsqueeze(1), features_BID).squeeze(1)


def uniform(features_BTKKD: torch.Tensor) -> torch.Tensor:
    """Return attention_BTKK of a model that has none: every cell counts alike."""
    batch, frames, rows, columns, _ = features_BTKKD.shape
    return features_BTKKD.new_full((batch, frames, rows, columns), 1 / (rows * columns))
