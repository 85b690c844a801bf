"""Attention over time of Yao et al. 2015, for classification.

The paper describes videos in sentences: for each word its decoder attends over the steps of the video. Here the decoder takes a
fixed number of steps S, and their states together give the class of the clip:

    v_t = [mean_i X_ti ; mean_i Z_ti]               X: the first stream, Z: the second (3-D features), if there is one
    h_0 = tanh(W_h m), c_0 = tanh(W_c m)            m: mean of v over the valid steps
    e_st = w * tanh(W h_s-1 + U v_t)                one score a step of the clip
    alpha_s = softmax(e_s)                          over the valid steps
    h_s, c_s = LSTM(sum_t alpha_st v_t, h_s-1, c_s-1)
    y = W_y mean_s h_s                              logits

Biases are left out above; w has none. The logits belong to the clip, so all its steps have the same, and votes over frames need
no weights: attention has weighed the steps already. `importance` is mean_s alpha_s. With S = 1 it is attention pooling over
time. Differences from the paper: it has no initial state from the clip in text form, but the released code does, as here; the
code's gate on the context (`selector`) and its penalty on alpha are left out.

With `spatial: local` the first stream is not averaged, but attended to over the cells of each step as well, by the score of
`pipeline_lib.networks.attention` without a state: v_t = [sum_i beta_ti X_ti ; mean_i Z_ti]. A cell's weight in the clip is then
a_ti = alpha_t beta_ti; `attention` is beta and `importance` is alpha.

Dropout is applied to the inputs of all linear layers, to v in whole channels, because neighbouring steps are correlated.
"""

# B batch, T steps of a clip, S decoder steps, K grid side, I = K * K cells, D channels, U units, V width of the scorer

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from pipeline_lib.networks.alstm import mean_of_valid
from pipeline_lib.networks.attention import Attention, uniform
from pipeline_lib.networks.dropout import Dropout
from pipeline_lib.networks.lstm import LSTMStack, glorot_linear, initialise
from pipeline_lib.networks.outputs import ModelOutputs, valid_mask


class TemporalAttention(nn.Module):
    """An LSTM decoder with soft attention over the steps of a clip, and optionally over the cells of each step."""

    def __init__(
        self,
        *,
        channels: int | Sequence[int],
        grid: int,
        num_classes: int,
        units: int,
        dropout: float,
        decoder_steps: int = 4,
        spatial: Literal["local"] | None = None,
        uniform_start: bool = False,
    ) -> None:
        """Initialise random weights; `channels` are those of one stream or of two."""
        super().__init__()
        parts = (channels,) if isinstance(channels, int) else tuple(channels)
        self.first_channels, self.decoder_steps = parts[0], decoder_steps
        self.dropout = Dropout(dropout)
        self.initial_h = glorot_linear(sum(parts), units)
        self.initial_c = glorot_linear(sum(parts), units)
        self.attention: Attention | None = None
        if spatial:
            self.attention = Attention(
                spatial,
                channels=parts[0],
                num_cells=grid * grid,
                width=units // 2,
                units=None,
                dropout=dropout,
                uniform_start=uniform_start,
            )
        self.scorer = StepScorer(sum(parts), units, dropout, uniform_start=uniform_start)
        self.cells = LSTMStack(sum(parts), units, layers=1)
        self.head = glorot_linear(units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
        """Return the model's outputs; `logits_BTC` are the same in all steps."""
        steps_BTD, attention_BTKK = self._pool_cells(features_BTKKD)
        mean_BD = mean_of_valid(steps_BTD, valid_steps_B)
        h_BU, c_BU = (torch.tanh(layer(self.dropout(mean_BD))) for layer in (self.initial_h, self.initial_c))
        advance = self.cells.start(self.decoder_steps, [(h_BU, c_BU)], carry_state=True)
        attend = self.scorer.start(steps_BTD, valid_steps_B)
        states, weights = [], []
        for _ in range(self.decoder_steps):
            weights_BT = attend(h_BU)
            h_BU = advance(torch.bmm(weights_BT.unsqueeze(1), steps_BTD).squeeze(1))
            states.append(h_BU)
            weights.append(weights_BT)
        logits_BC = self.head(self.dropout(torch.stack(states).mean(dim=0)))
        logits_BTC = logits_BC.unsqueeze(1).expand(-1, features_BTKKD.shape[1], -1)
        return ModelOutputs(logits_BTC, attention_BTKK, torch.stack(weights).mean(dim=0))

    def _pool_cells(self, features_BTKKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return v of each step, steps_BTD, and attention_BTKK over the cells of the first stream."""
        features_BTID = features_BTKKD.flatten(2, 3)
        if self.attention is None:
            return features_BTID.mean(dim=2), uniform(features_BTKKD)
        first_BTID, second_BTID = features_BTID.tensor_split([self.first_channels], dim=3)
        attention_BTI = self.attention(self.attention.look_ahead(first_BTID))
        glimpse_BTD = torch.einsum("bti,btid->btd", attention_BTI, first_BTID)
        return torch.cat((glimpse_BTD, second_BTID.mean(dim=2)), dim=2), attention_BTI.view(features_BTKKD.shape[:-1])


class StepScorer(nn.Module):
    """Soft attention over the steps of a clip."""

    def __init__(self, channels: int, units: int, dropout: float, *, uniform_start: bool) -> None:
        """Initialise random weights; with `uniform_start` those of the last layer are zero."""
        super().__init__()
        self.dropout = Dropout(dropout)
        self.features = glorot_linear(channels, units // 2)
        self.state = nn.Linear(units, units // 2, bias=False)
        self.score = nn.Linear(units // 2, 1, bias=False)
        initialise(self.state)
        initialise(self.score)
        if uniform_start:
            nn.init.zeros_(self.score.weight)

    def start(self, steps_BTD: torch.Tensor, valid_steps_B: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from the decoder's state h_BU to weights_BT, which are 0 for padding."""
        padding_BT = ~valid_mask(valid_steps_B, steps_BTD.shape[1])
        ahead_BTV = self.features(self._drop_channels(steps_BTD))

        def attend(h_BU: torch.Tensor) -> torch.Tensor:
            hidden_BTV = torch.tanh(ahead_BTV + self.state(self.dropout(h_BU)).unsqueeze(1))
            scores_BT = self.score(self._drop_channels(hidden_BTV)).squeeze(2)
            return torch.softmax(scores_BT.masked_fill(padding_BT, -torch.inf), dim=1)

        return attend

    def _drop_channels(self, steps_BTD: torch.Tensor) -> torch.Tensor:
        """Apply dropout to whole channels."""
        if not self.dropout.drops:
            return steps_BTD
        return steps_BTD * self.dropout.factors(steps_BTD, (len(steps_BTD), 1, steps_BTD.shape[2]))
