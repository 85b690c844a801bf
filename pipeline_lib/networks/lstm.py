"""LSTM cells on vectors and on maps, with input weights, recurrent weights and one bias per gate, as in Keras.

Gates are stacked along the channel axis in the order input, forget, candidate, output, and use sigmoid and tanh. The Keras
version of the tutorial used a piecewise linear `hard_sigmoid` in ConvLSTM2D instead.
"""

# T steps of a clip, B batch, D input channels, U units, K grid side

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from pipeline_lib.networks.deferred import Deferred, gradient_of_linear

fused_lstm_cell: Callable[..., tuple[torch.Tensor, ...]] = torch.ops.aten._thnn_fused_lstm_cell.default
"""The kernel of `nn.LSTMCell` on a GPU: `advance` in a single kernel, with a single kernel for its gradient."""

State = tuple[torch.Tensor, torch.Tensor]
"""Hidden state h and cell state c, BU or BKKU."""


class LSTMCell(nn.Module):
    """Weights of an LSTM on vectors."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.input, self.recurrent = self.make_halves(channels, units)
        initialise_cell(self.input, self.recurrent)

    def make_halves(self, channels: int, units: int) -> tuple[nn.Linear | nn.Conv2d, nn.Linear | nn.Conv2d]:
        """Return the input half, with the bias, and the recurrent half."""
        return nn.Linear(channels, 4 * units), nn.Linear(units, 4 * units, bias=False)

    def join(self, num_frames: int, c_BU: torch.Tensor) -> Deferred:
        """Return both halves as one layer on the concatenated (x, h) of every frame, so that a step is a single product."""
        assert self.input.bias is not None
        biases = self.input.bias.expand(num_frames, *c_BU.shape[:-1], -1)
        return Deferred(self.joint_weight(), biases, self.weight_gradient)

    def joint_weight(self) -> torch.Tensor:
        """Return the weights of both halves, concatenated."""
        return torch.cat((self.input.weight, self.recurrent.weight), dim=1)

    def multiply(self, stacked_BD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return gates_B4U without their bias."""
        return stacked_BD @ weight.t()

    weight_gradient = staticmethod(gradient_of_linear)


class ConvLSTMCell(LSTMCell):
    """Weights of an LSTM on maps (channels last): 3x3 convolutions with same padding, without peepholes."""

    def make_halves(self, channels: int, units: int) -> tuple[nn.Linear | nn.Conv2d, nn.Linear | nn.Conv2d]:
        """Return the input half, with the bias, and the recurrent half."""
        half = functools.partial(nn.Conv2d, out_channels=4 * units, kernel_size=3, padding=1)
        return half(channels), half(units, bias=False)

    def joint_weight(self) -> torch.Tensor:
        """Return the kernels of both halves, concatenated."""
        return super().joint_weight().contiguous(memory_format=torch.channels_last)

    def multiply(self, stacked_BKKD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return gates_BKK4U without their bias."""
        return functional.conv2d(stacked_BKKD.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)

    @staticmethod
    def weight_gradient(stacked_TBKKD: torch.Tensor, dgates_TBKK4U: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return the gradient of the joint weights by one convolution over all frames of all clips."""
        images, dimages = (maps.flatten(0, 1).permute(0, 3, 1, 2) for maps in (stacked_TBKKD, dgates_TBKK4U))
        return conv2d_weight(images, shape, dimages, padding=1)


class LSTMStack(nn.ModuleList):
    """Stacked LSTMs, each of which takes the h of the previous one."""

    def __init__(self, channels: int, units: int, layers: int, cell: type[LSTMCell] = LSTMCell) -> None:
        super().__init__(cell(channels if layer == 0 else units, units) for layer in range(layers))

    def start(self, num_frames: int, states: Sequence[State], *, carry_state: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from the next frame's x_BD to the last layer's h_BU, to be called once for each frame in order.

        It starts from the (h, c) in `states`, one for each layer. With `carry_state` False every frame starts from zeros.
        """
        if not carry_state:
            states = [(torch.zeros_like(h), torch.zeros_like(c)) for h, c in states]
        cells = [cell for cell in self if isinstance(cell, LSTMCell)]
        layers = [(cell, cell.join(num_frames, c)) for cell, (_, c) in zip(cells, states, strict=True)]
        states = list(states)

        def step(x: torch.Tensor) -> torch.Tensor:
            for layer, (cell, joint) in enumerate(layers):
                h, c = states[layer]
                stacked = torch.cat((x, h), dim=-1)
                h, c = advance(cell.multiply(stacked, joint.weight), joint.offset(stacked), c)
                x = h.to(x.dtype)
                if carry_state:
                    states[layer] = x, c
            return x

        return step


def advance(gates: torch.Tensor, biases: torch.Tensor, c: torch.Tensor) -> State:
    """Return the next (h, c) from the stacked pre-activations of the four gates.

    The state keeps its precision if autocast computes the gates in a lower one.
    """
    if gates.is_cuda:
        rows = (tensor.to(c.dtype).flatten(0, -2) for tensor in (gates, biases, c))
        with torch.autocast("cuda", enabled=False):  # autocast would lower the precision of the state
            h_NU, c_NU, _ = fused_lstm_cell(*rows)
        return h_NU.view_as(c), c_NU.view_as(c)
    i, f, g, o = (gates.to(c.dtype) + biases).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def initialise_cell(input_half: nn.Linear | nn.Conv2d, recurrent_half: nn.Linear | nn.Conv2d) -> None:
    """Initialise Glorot uniform weights, and biases of 1 for the forget gate and 0 otherwise, as in the tutorial's code."""
    initialise(input_half)
    initialise(recurrent_half)
    assert input_half.bias is not None
    units = input_half.bias.numel() // 4
    with torch.no_grad():
        input_half.bias[units : 2 * units] = 1.0


def initialise(layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
    """Initialise Glorot uniform weights and zero bias, Keras' defaults that the article's models use."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def glorot_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer with Keras' default weights."""
    layer = nn.Linear(in_features, out_features)
    initialise(layer)
    return layer


def glorot_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution with same padding and Keras' default weights."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    initialise(layer)
    return layer
