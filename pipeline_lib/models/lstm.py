"""LSTM cells on vectors and on maps: one input half, one recurrent half, one bias per gate, as in Keras.

Gates are stacked along the channel axis in the order input, forget, candidate, output. All four are plain sigmoid or tanh;
Keras' ConvLSTM2D of the tutorial's time used a piecewise linear `hard_sigmoid` instead, to save time, which is not followed.
"""

# B batch, D input channels, U units, K grid side

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

State = tuple[torch.Tensor, torch.Tensor]
"""Hidden state h and cell state c."""


class LSTMCell(nn.Module):
    """One step of an LSTM on vectors."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(channels, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units, bias=False)
        initialise_cell(self.input, self.recurrent)

    def forward(self, x_BD: torch.Tensor, state: State) -> State:
        """Return the next (h_BU, c_BU)."""
        h_BU, c_BU = state
        return advance(self.input(x_BD) + self.recurrent(h_BU), c_BU)


class LSTMStack(nn.ModuleList):
    """One step of several LSTMs on vectors, each on the h of the one below."""

    def __init__(self, channels: int, units: int, layers: int) -> None:
        super().__init__(LSTMCell(channels if layer == 0 else units, units) for layer in range(layers))
        self.units = units

    def zero_states(self, x_BD: torch.Tensor) -> list[State]:
        """Return (h_BU, c_BU) of zeros for each layer."""
        zeros_BU = x_BD.new_zeros(len(x_BD), self.units)
        return [(zeros_BU, zeros_BU)] * len(self)

    def forward(self, x_BD: torch.Tensor, states: Sequence[State]) -> list[State]:
        """Return the next (h_BU, c_BU) of each layer."""
        after: list[State] = []
        for cell, state in zip(self, states, strict=True):
            after.append(cell(after[-1][0] if after else x_BD, state))
        return after


class ConvLSTMCell(nn.Module):
    """One step of an LSTM on maps: 3x3 convolutions, same padding, no peepholes."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.input = nn.Conv2d(channels, 4 * units, kernel_size=3, padding=1)
        self.recurrent = nn.Conv2d(units, 4 * units, kernel_size=3, padding=1, bias=False)
        initialise_cell(self.input, self.recurrent)

    def joint_weight(self) -> torch.Tensor:
        """Return both halves as one kernel over the stacked (x, h), so that a step is one convolution."""
        weight = torch.cat((self.input.weight, self.recurrent.weight), dim=1)
        return weight.contiguous(memory_format=torch.channels_last)

    def forward(self, x_BDKK: torch.Tensor, state: State, joint_weight: torch.Tensor) -> State:
        """Return the next (h_BUKK, c_BUKK); `joint_weight` is made once for all steps."""
        h_BUKK, c_BUKK = state
        stacked = torch.cat((x_BDKK, h_BUKK), dim=1)
        return advance(functional.conv2d(stacked, joint_weight, self.input.bias, padding=1), c_BUKK)


class ConvLSTMStack(nn.ModuleList):
    """One step of several LSTMs on maps, each on the h of the one below."""

    def __init__(self, channels: int, units: int, layers: int) -> None:
        super().__init__(ConvLSTMCell(channels if layer == 0 else units, units) for layer in range(layers))
        self.units = units

    def joint_weights(self) -> list[torch.Tensor]:
        """Return each layer's `joint_weight`."""
        return [cell.joint_weight() for cell in self if isinstance(cell, ConvLSTMCell)]

    def zero_states(self, x_BKKD: torch.Tensor) -> list[State]:
        """Return (h_BUKK, c_BUKK) of zeros for each layer; `x_BKKD` is a frame, channels last."""
        zeros_BUKK = x_BKKD.new_zeros((*x_BKKD.shape[:3], self.units)).permute(0, 3, 1, 2)
        return [(zeros_BUKK, zeros_BUKK)] * len(self)

    def forward(self, x_BDKK: torch.Tensor, states: Sequence[State], joint_weights: Sequence[torch.Tensor]) -> list[State]:
        """Return the next (h_BUKK, c_BUKK) of each layer."""
        after: list[State] = []
        for cell, state, joint_weight in zip(self, states, joint_weights, strict=True):
            after.append(cell(after[-1][0] if after else x_BDKK, state, joint_weight))
        return after


def advance(gates: torch.Tensor, c: torch.Tensor) -> State:
    """Return the next (h, c) from the four gates before their nonlinearities, stacked along axis 1.

    The state keeps its own precision when autocast hands over gates in a lower one.
    """
    i, f, g, o = gates.to(c.dtype).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def initialise_cell(input_half: nn.Linear | nn.Conv2d, recurrent_half: nn.Linear | nn.Conv2d) -> None:
    """Glorot uniform weights in both halves, as the tutorial's code, and bias 0 but for the forget gate's 1."""
    initialise(input_half)
    initialise(recurrent_half)
    assert input_half.bias is not None
    units = input_half.bias.numel() // 4
    with torch.no_grad():
        input_half.bias[units : 2 * units] = 1.0


def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Glorot uniform weights and zero bias: Keras' defaults, which the article's models were trained from."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def glorot_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer with Keras' default weights."""
    layer = nn.Linear(in_features, out_features)
    initialise(layer)
    return layer


def glorot_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution, same padding, with Keras' default weights."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    initialise(layer)
    return layer
