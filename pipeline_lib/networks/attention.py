"""Soft attention over the cells of a frame.

Scores depend on the frame and, in a recurrent model, on the previous state h. Attention is their softmax over the cells:

    pooled  s = W_3 tanh(W_1 mean_i(X_i) + W_2 h)     scores of all cells from the whole frame (the article's ALSTM)
    local   s_i = w_3 * tanh(W_1 X_i + W_2 h_i)       each cell's score from its own features (Sharma's code, Li et al. 2018)

The term that depends only on the features is computed for all frames before the loop over time. Dropout is applied to the
input of every layer. On cells it drops whole channels (spatial dropout, Tompson et al. 2015), because neighbouring cells are
correlated.
"""

# B batch, T steps of a clip, I = K * K cells, D channels, U units of the state, V width of the scorer

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from pipeline_lib.networks.deferred import Deferred, gradient_of_linear
from pipeline_lib.networks.dropout import Dropout
from pipeline_lib.networks.lstm import glorot_linear

Scorer = Literal["pooled", "local"]
Step = Callable[[torch.Tensor], torch.Tensor]


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
        """Initialise random weights; `units` is the width of the state, None without one.

        With `uniform_start` the weights of the last layer are zero, so that attention is uniform at first.
        """
        super().__init__()
        self.scorer = scorer
        self.dropout = Dropout(dropout)
        self.features = glorot_linear(channels, width)
        self.state = glorot_linear(units, width) if units else None
        self.score = glorot_linear(width, num_cells if scorer == "pooled" else 1)
        if uniform_start:
            nn.init.zeros_(self.score.weight)

    def look_ahead(self, features_BTID: torch.Tensor, pooled_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features' projection for all frames: BTV if pooled, BTIV if local; `pooled_BTD` is the mean over cells."""
        if self.scorer == "local":
            return self.features(self._drop(features_BTID))
        return self.features(self._drop(features_BTID.mean(dim=2) if pooled_BTD is None else pooled_BTD))

    def forward(self, ahead: torch.Tensor) -> torch.Tensor:
        """Return attention over the cells, the last axis, without a state; `ahead` is the result of `look_ahead`."""
        scores = self.score(self._drop(torch.tanh(ahead)))
        return torch.softmax(scores if self.scorer == "pooled" else scores.squeeze(-1), dim=-1)

    def start(self, ahead: torch.Tensor, *, state_has_cells: bool) -> Step:
        """Return a function from the previous state to the next frame's attention_BI, to be called for each frame in order.

        `ahead` is the result of `look_ahead` with the frames as its first axis. The state is h_BU, or h_BIU if it has cells.
        """
        assert self.state is not None
        from_state = Deferred(self.state.weight, ahead + self.state.bias.to(ahead.dtype), gradient_of_linear)
        one_cell = (1,) if state_has_cells else ()
        drop_state = self.dropout.steps(ahead, (*ahead.shape[:2], *one_cell, self.state.in_features))
        score = self._start_pooled(ahead) if self.scorer == "pooled" else self._start_local(ahead)
        same_for_all_cells = self.scorer == "local" and not state_has_cells

        def attend(state: torch.Tensor) -> torch.Tensor:
            state = drop_state(state)
            product = state @ from_state.weight.t()
            hidden = torch.tanh(from_state.offset(state) + (product.unsqueeze(1) if same_for_all_cells else product))
            return torch.softmax(score(hidden), dim=-1)

        return attend

    def _start_pooled(self, ahead_TBV: torch.Tensor) -> Step:
        """Return the last layer as a function of the next frame's hidden_BV."""
        biases_TBI = self.score.bias.to(ahead_TBV.dtype).expand(*ahead_TBV.shape[:2], -1)
        layer = Deferred(self.score.weight, biases_TBI, gradient_of_linear)
        drop = self.dropout.steps(ahead_TBV, ahead_TBV.shape)

        def score(hidden_BV: torch.Tensor) -> torch.Tensor:
            hidden_BV = drop(hidden_BV)
            return torch.addmm(layer.offset(hidden_BV), hidden_BV, layer.weight.t())

        return score

    def _start_local(self, ahead_TBIV: torch.Tensor) -> Step:
        """Return the last layer as a function of the next frame's hidden_BIV; spatial dropout is applied to its weights."""
        num_frames, batch, num_cells, width = ahead_TBIV.shape
        weights_TBV1 = self.score.weight.t().expand(num_frames, batch, width, 1)
        if self.dropout.drops:
            weights_TBV1 = weights_TBV1 * self.dropout.factors(weights_TBV1, weights_TBV1.shape)
        biases_TBI1 = self.score.bias.to(ahead_TBIV.dtype).expand(num_frames, batch, num_cells, 1)
        layer = Deferred(weights_TBV1, biases_TBI1, lambda hidden, dscores, _: hidden.mT @ dscores)
        weights = iter(layer.weight.unbind(0))

        def score(hidden_BIV: torch.Tensor) -> torch.Tensor:
            return torch.baddbmm(layer.offset(hidden_BIV), hidden_BIV, next(weights)).squeeze(-1)

        return score

    def _drop(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply dropout, or spatial dropout if the inputs have cells."""
        if self.scorer == "pooled" or not self.dropout.drops:
            return self.dropout(inputs)
        return inputs * self.dropout.factors(inputs, (*inputs.shape[:-2], 1, inputs.shape[-1]))


def glimpse(attention_BI: torch.Tensor, features_BID: torch.Tensor) -> torch.Tensor:
    """Return glimpse_BD, the attention-weighted sum of a frame's cells."""
    return torch.bmm(attention_BI.unsqueeze(1), features_BID).squeeze(1)


def uniform(features_BTKKD: torch.Tensor) -> torch.Tensor:
    """Return uniform attention_BTKK, for a model without attention."""
    batch, frames, rows, columns, _ = features_BTKKD.shape
    return features_BTKKD.new_full((batch, frames, rows, columns), 1 / (rows * columns))
