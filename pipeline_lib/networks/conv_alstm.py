"""Convolutional attention LSTM (ConvALSTM) of Li et al. 2018, as in the article: the state is a map, carried over frames.

    s_t = w_3 * tanh(W_1 * h_t-1 + W_2 * X_t)       1x1 convolutions, one score per cell
    a_t = softmax(s_t)                              over the cells
    x_t = a_t X_t                                   a map: weighted, not summed
    h_t, c_t = ConvLSTM(x_t, h_t-1, c_t-1)          3x3 convolutions; h_0 = c_0 = 0
    y_t = W_y flatten(h_t)                          logits

Biases are omitted above. The only fully connected layer is the last one, and dropout is applied only to its input. Variants:

- `layers`: stacked ConvLSTMs; h of the last one determines attention and logits.
- `carry_state: false`: h_t, c_t = ConvLSTM(x_t, 0, 0) as in the tutorial's code (see `pipeline_lib.networks.alstm`).
- `rescale_glimpse`: x_t = K^2 a_t X_t, which is X_t for uniform attention. Without it, attention scales the features down by
  about K^2, because the cells are not summed, and the convolutions get a very weak input at first.
- `head_channels`: y_t = W_y sum_i a_ti relu(W_6 * h_t)_i with a 3x3 convolution W_6, as the article suggests. Its original head
  has separate weights for every cell. The sum is weighted by attention, because a plain mean would lose small objects.
"""

# B batch, T steps of a clip, K grid side, I = K * K cells, D channels, U units, C classes

from __future__ import annotations

import torch
from torch import nn

from pipeline_lib.networks.attention import Attention, Step
from pipeline_lib.networks.deferred import compute_dtype
from pipeline_lib.networks.dropout import Dropout
from pipeline_lib.networks.lstm import ConvLSTMCell, LSTMStack, glorot_conv, glorot_linear
from pipeline_lib.networks.outputs import ModelOutputs, uniform_importance


class ConvALSTM(nn.Module):
    """Soft attention over the cells of each frame, followed by a convolutional LSTM over the weighted frames."""

    def __init__(
        self,
        *,
        channels: int,
        grid: int,
        num_classes: int,
        units: int,
        dropout: float,
        layers: int = 1,
        uniform_start: bool = False,
        rescale_glimpse: bool = False,
        carry_state: bool = True,
        head_channels: int | None = None,
    ) -> None:
        """Initialise random weights."""
        super().__init__()
        self.carry_state = carry_state
        self.glimpse_scale = grid * grid if rescale_glimpse else 1
        self.attention = Attention(
            "local",
            channels=channels,
            num_cells=grid * grid,
            width=units,
            units=units,
            dropout=0.0,
            uniform_start=uniform_start,
        )
        self.units = units
        self.cells = LSTMStack(channels, units, layers, ConvLSTMCell)
        self.head = make_head(units, grid, num_classes, dropout, head_channels)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
        """Return the model's outputs; `importance_BT` is uniform.

        Padded frames have outputs too, which the caller must ignore. They do not affect valid frames.
        """
        features_TBKKD = features_BTKKD.transpose(0, 1).contiguous()  # so that frames are channels-last images
        attend = self.attention.start(self.attention.look_ahead(features_TBKKD.flatten(2, 3)), state_has_cells=True)
        c_BKKU = features_TBKKD.new_zeros((*features_TBKKD.shape[1:4], self.units))
        inputs_TBKKD = features_TBKKD.to(compute_dtype(features_TBKKD))
        h_BKKU = c_BKKU.to(inputs_TBKKD.dtype)
        step = self.cells.start(len(inputs_TBKKD), [(h_BKKU, c_BKKU)] * len(self.cells), carry_state=self.carry_state)
        h_BTKKU, attention_BTKK = unroll_maps(attend, step, inputs_TBKKD, h_BKKU, self.glimpse_scale)
        logits_BTC = self.head(h_BTKKU, attention_BTKK)
        return ModelOutputs(logits_BTC, attention_BTKK, uniform_importance(attention_BTKK, valid_steps_B))


def unroll_maps(
    attend: Step, step: Step, inputs_TBKKD: torch.Tensor, h_BKKU: torch.Tensor, glimpse_scale: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loop over the frames; return h_BTKKU of every frame and attention_BTKK.

    `attend` takes the state before a frame, h_BIU, and returns its attention_BI; `step` takes the weighted frame and returns
    the next state, h_BKKU.
    """
    outputs, maps = [], []
    for inputs_BKKD in inputs_TBKKD.unbind(0):
        attention_BI = attend(h_BKKU.flatten(1, 2))
        weights_BI = attention_BI if glimpse_scale == 1 else glimpse_scale * attention_BI
        weights_BKK1 = weights_BI.to(inputs_BKKD.dtype).view(*inputs_BKKD.shape[:3], 1)
        h_BKKU = step(weights_BKK1 * inputs_BKKD)
        outputs.append(h_BKKU)
        maps.append(attention_BI.view(inputs_BKKD.shape[:3]))
    return torch.stack(outputs, dim=1), torch.stack(maps, dim=1)


def make_head(units: int, grid: int, num_classes: int, dropout: float, head_channels: int | None) -> nn.Module:
    """Return the head on all cells, or with `head_channels` the convolutional one; it takes h_BTKKU and attention_BTKK."""
    if head_channels is None:
        return FlatHead(units, grid, num_classes, dropout)
    return ConvolutionalHead(units, head_channels, num_classes, dropout)


class FlatHead(nn.Module):
    """A linear layer on all cells of the state; ignores attention."""

    def __init__(self, units: int, grid: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classify = glorot_linear(grid * grid * units, num_classes)

    def forward(self, h_BTKKU: torch.Tensor, attention_BTKK: torch.Tensor) -> torch.Tensor:
        """Return logits_BTC."""
        return self.classify(self.dropout(h_BTKKU.flatten(2)))


class ConvolutionalHead(nn.Module):
    """A 3x3 convolution, an attention-weighted sum over the cells, and a linear layer."""

    def __init__(self, units: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.convolution = glorot_conv(units, channels)
        self.dropout = Dropout(dropout)
        self.classify = glorot_linear(channels, num_classes)

    def forward(self, h_BTKKU: torch.Tensor, attention_BTKK: torch.Tensor) -> torch.Tensor:
        """Return logits_BTC."""
        images_NUKK = h_BTKKU.flatten(0, 1).permute(0, 3, 1, 2)  # N = B * T, E head channels
        hidden_NEKK = torch.relu(self.convolution(images_NUKK))
        pooled_NE = (hidden_NEKK * attention_BTKK.flatten(0, 1).unsqueeze(1)).sum(dim=(2, 3))
        return self.classify(self.dropout(pooled_NE)).unflatten(0, h_BTKKU.shape[:2])
