"""Motion-based attention, the third idea of VideoLSTM (Li et al. 2018): an LSTM on optical flow says where to look in RGB.

`motion_conv_alstm`, on maps X of RGB and M of flow, both K x K:

    hm_t, cm_t = ConvLSTM(M_t, [hm_t-1, h_t-1], cm_t-1)      1x1 convolutions; h, the state below, is a third input to all gates
    s_t = w_3 * tanh(W_1 * X_t + W_2 * hm_t)                 1x1 convolutions; hm of the same step, not of the one before
    a_t = softmax(s_t)                                       over the cells
    h_t, c_t = ConvLSTM(a_t X_t, h_t-1, c_t-1)               3x3 convolutions
    y_t = head(h_t)                                          logits: flow reaches them through attention alone

    hm_0 = tanh(W_3 * mean_t M_t), cm_0 = tanh(W_4 * mean_t M_t)      1x1 convolutions, means over the valid steps
    h_0 = tanh(W_5 * mean_t X_t), c_0 = tanh(W_6 * mean_t X_t)        3x3 convolutions

`motion_alstm`, the same with vectors as states:

    hm_t, cm_t = LSTM(mean_i M_ti, [hm_t-1, h_t-1], cm_t-1)
    a_t = softmax(s(X_t, hm_t))                              see `pipeline_lib.networks.attention`
    h_t, c_t = LSTM(sum_i a_ti X_ti, h_t-1, c_t-1)
    y_t = W_y h_t

    hm_0, cm_0, h_0, c_0: as above, of means over the cells too, by linear layers

With a local scorer, one vector hm_t serves all cells of a frame: it can say what to look for, but not where it moves.

Biases are omitted. Dropout, `layers`, `rescale_glimpse` and `head_channels` are those of `pipeline_lib.networks.conv_alstm` and
`pipeline_lib.networks.alstm`; with several layers, h is the last one's.

What differs from the paper: its flow network sees a single flow and is tuned on the target set, as is its RGB network; here
both streams are whatever `features.streams` says. It trains the ConvLSTM on flow alone, then ConvALSTM on RGB alone, copies
both into this model and trains it further; here all weights start at random and are trained together, by Adam instead of
RMSProp. Its head is a layer of 1,024 tanh units on all cells with dropout 0.7; here it is ConvALSTM's. Its complete system adds
the scores of a ConvALSTM on flow, which is a fusion here (`evaluate.fusions`).

Ablations (`motion`):

- `state`: the model above.
- `map`: no motion state. M_t takes the place of hm_t in the scores, and there is no LSTM on flow, so that attention depends on
  its own step alone.
- `magnitude`: the LSTM on flow sees |M_t| in place of M_t, one number a cell: the root mean square over the channels. M_t are
  features of a network that sees flow as an image in which a still area is grey (`pipeline_lib.streams.flow.encoding`). |M_t|
  is thus how strongly that network responds at a place, and not a speed in pixels. `motion_alstm` takes the K^2 magnitudes as a
  vector, since their mean would not say where anything moves.
- `shuffled`: the model above with the flow of another clip; the reader shuffles (`pipeline_lib.streams.joined.other_clips`).
"""

# B batch, T steps of a clip, K grid side, I = K * K cells, D channels of RGB, M of flow, E = D + M, U units, C classes

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline_lib.networks.alstm import mean_of_valid
from pipeline_lib.networks.alstm_op import unroll
from pipeline_lib.networks.attention import Attention, Scorer, Step
from pipeline_lib.networks.conv_alstm import make_head, unroll_maps
from pipeline_lib.networks.deferred import Deferred, compute_dtype, gradient_of_linear
from pipeline_lib.networks.dropout import Dropout
from pipeline_lib.networks.lstm import (
    ConvLSTMCell,
    LSTMStack,
    State,
    advance,
    glorot_conv,
    glorot_linear,
    initialise,
    initialise_cell,
)
from pipeline_lib.networks.outputs import ModelOutputs, uniform_importance
from pipeline_lib.params.models import Motion


class MotionConvALSTM(nn.Module):
    """A ConvLSTM on flow whose state scores the cells, and a ConvLSTM on the weighted cells of RGB."""

    def __init__(
        self,
        *,
        channels: tuple[int, int],
        grid: int,
        num_classes: int,
        units: int,
        dropout: float,
        layers: int = 1,
        uniform_start: bool = False,
        rescale_glimpse: bool = False,
        head_channels: int | None = None,
        motion: Motion = "state",
    ) -> None:
        """Initialise random weights; `channels` are those of RGB and of flow."""
        super().__init__()
        self.channels = tuple(channels)
        self.glimpse_scale = grid * grid if rescale_glimpse else 1
        self.initial_h = nn.ModuleList(glorot_conv(channels[0], units) for _ in range(layers))
        self.initial_c = nn.ModuleList(glorot_conv(channels[0], units) for _ in range(layers))
        self.attention = MotionAttention(
            "local",
            motion,
            channels=channels,
            num_cells=grid * grid,
            width=units,
            units=units,
            dropout=0.0,
            uniform_start=uniform_start,
            state_has_cells=True,
        )
        self.cells = LSTMStack(channels[0], units, layers, ConvLSTMCell)
        self.head = make_head(units, grid, num_classes, dropout, head_channels)

    def forward(self, features_BTKKE: Tensor, valid_steps_B: Tensor) -> ModelOutputs:
        """Return the model's outputs; `importance_BT` is uniform.

        Padded frames have outputs too, which the caller must ignore. They do not affect valid frames.
        """
        features_TBKKE = features_BTKKE.transpose(0, 1)
        rgb_TBKKD = features_TBKKE[..., : self.channels[0]].contiguous()  # so that frames are channels-last images
        states = self._initial_states(mean_of_steps(rgb_TBKKD, valid_steps_B))
        attend = self.attention.start(features_TBKKE.flatten(2, 3), valid_steps_B)
        step = self.cells.start(len(rgb_TBKKD), states, carry_state=True)
        inputs_TBKKD = rgb_TBKKD.to(compute_dtype(rgb_TBKKD))
        h_BTKKU, attention_BTKK = unroll_maps(attend, step, inputs_TBKKD, states[-1][0], self.glimpse_scale)
        importance_BT = uniform_importance(attention_BTKK, valid_steps_B)
        return ModelOutputs(self.head(h_BTKKU, attention_BTKK), attention_BTKK, importance_BT)

    def _initial_states(self, mean_BKKD: Tensor) -> list[State]:
        image_BDKK = mean_BKKD.permute(0, 3, 1, 2)
        pairs = [initial_state(*layer, image_BDKK) for layer in zip(self.initial_h, self.initial_c, strict=True)]
        return [(h_BUKK.permute(0, 2, 3, 1), c_BUKK.permute(0, 2, 3, 1)) for h_BUKK, c_BUKK in pairs]


class MotionALSTM(nn.Module):
    """An LSTM on flow whose state scores the cells, and an LSTM on the weighted sum of RGB's cells."""

    def __init__(
        self,
        *,
        channels: tuple[int, int],
        grid: int,
        num_classes: int,
        units: int,
        dropout: float,
        layers: int = 1,
        scorer: Scorer = "local",
        uniform_start: bool = False,
        motion: Motion = "state",
    ) -> None:
        """Initialise random weights; `channels` are those of RGB and of flow."""
        super().__init__()
        self.channels = tuple(channels)
        self.dropout = Dropout(dropout)
        self.initial_h = nn.ModuleList(glorot_linear(channels[0], units) for _ in range(layers))
        self.initial_c = nn.ModuleList(glorot_linear(channels[0], units) for _ in range(layers))
        self.attention = MotionAttention(
            scorer,
            motion,
            channels=channels,
            num_cells=grid * grid,
            width=units // 2,
            units=units,
            dropout=dropout,
            uniform_start=uniform_start,
            state_has_cells=False,
        )
        self.cells = LSTMStack(channels[0], units, layers)
        self.head = glorot_linear(units, num_classes)

    def forward(self, features_BTKKE: Tensor, valid_steps_B: Tensor) -> ModelOutputs:
        """Return the model's outputs; `importance_BT` is uniform.

        Padded frames have outputs too, which the caller must ignore. They do not affect valid frames.
        """
        features_BTIE = features_BTKKE.flatten(2, 3)
        rgb_BTID = features_BTIE[..., : self.channels[0]]
        mean_BD = mean_of_valid(rgb_BTID.mean(dim=2), valid_steps_B)
        layers = zip(self.initial_h, self.initial_c, strict=True)
        states = [initial_state(to_h, to_c, mean_BD, self.dropout) for to_h, to_c in layers]
        attend = self.attention.start(features_BTIE.transpose(0, 1), valid_steps_B)
        step = self.cells.start(rgb_BTID.shape[1], states, carry_state=True)
        outputs_BTU, attention_BTI = unroll(attend, step, rgb_BTID, states[-1][0])
        attention_BTKK = attention_BTI.reshape(features_BTKKE.shape[:-1])
        importance_BT = uniform_importance(attention_BTKK, valid_steps_B)
        return ModelOutputs(self.head(self.dropout(outputs_BTU)), attention_BTKK, importance_BT)


class MotionAttention(nn.Module):
    """Attention whose scores depend on RGB and on the state of an LSTM on flow, or on the flow itself."""

    def __init__(
        self,
        scorer: Scorer,
        motion: Motion,
        *,
        channels: tuple[int, int],
        num_cells: int,
        width: int,
        units: int,
        dropout: float,
        uniform_start: bool,
        state_has_cells: bool,
    ) -> None:
        """Initialise random weights; `state_has_cells` tells states on maps from states that are vectors."""
        super().__init__()
        self.channels, self.motion, self.state_has_cells = tuple(channels), motion, state_has_cells
        self.dropout = Dropout(dropout)
        self.attention = Attention(
            scorer,
            channels=sum(channels) if motion == "map" else channels[0],
            num_cells=num_cells,
            width=width,
            units=None if motion == "map" else units,
            dropout=dropout,
            uniform_start=uniform_start,
        )
        if motion != "map":
            magnitudes = 1 if state_has_cells else num_cells
            inputs = magnitudes if motion == "magnitude" else channels[1]
            self.initial_h, self.initial_c = glorot_linear(inputs, units), glorot_linear(inputs, units)
            self.cell = MotionCell(inputs, units)

    def start(self, features_TBIE: Tensor, valid_steps_B: Tensor) -> Step:
        """Return a function from the state below before a frame, h_BU or h_BIU, to the frame's attention_BI.

        It is to be called for each frame in order.
        """
        if self.motion == "map":
            maps = iter(self.attention(self.attention.look_ahead(features_TBIE)).unbind(0))
            return lambda h: next(maps)
        rgb_TBID, flow_TBIM = features_TBIE.split(self.channels, dim=-1)
        flow_TB = self._inputs(flow_TBIM)
        state = initial_state(self.initial_h, self.initial_c, mean_of_steps(flow_TB, valid_steps_B), self.dropout)
        step = self.cell.start(flow_TB, state)
        attend = self.attention.start(self.attention.look_ahead(rgb_TBID), state_has_cells=self.state_has_cells)
        return lambda h: attend(step(h))

    def _inputs(self, flow_TBIM: Tensor) -> Tensor:
        """Return what the LSTM on flow takes: a map of vectors or of magnitudes, or a vector of means or of magnitudes."""
        if self.motion == "magnitude":
            magnitude_TBI = torch.linalg.vector_norm(flow_TBIM, dim=-1) / self.channels[1] ** 0.5
            return magnitude_TBI.unsqueeze(-1) if self.state_has_cells else magnitude_TBI
        return flow_TBIM if self.state_has_cells else flow_TBIM.mean(dim=2)


class MotionCell(nn.Module):
    """Weights of an LSTM on vectors, or by 1x1 convolutions on maps, that also takes the state of another LSTM."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(channels, 4 * units)
        self.recurrent, self.below = (nn.Linear(units, 4 * units, bias=False) for _ in range(2))
        initialise_cell(self.input, self.recurrent)
        initialise(self.below)

    def start(self, inputs_T: Tensor, state: State) -> Step:
        """Return a function from the other LSTM's h to this one's next h, to be called for each frame in order.

        The inputs' part of the gates is computed here, for all frames at once.
        """
        h, c = state
        joint = Deferred(torch.cat((self.recurrent.weight, self.below.weight), dim=1), self.input(inputs_T), gradient_of_linear)

        def step(below: Tensor) -> Tensor:
            nonlocal h, c
            stacked = torch.cat((h, below), dim=-1)
            h, c = advance(stacked @ joint.weight.t(), joint.offset(stacked), c)
            h = h.to(stacked.dtype)
            return h

        return step


def mean_of_steps(values_TB: Tensor, valid_steps_B: Tensor) -> Tensor:
    """Return the mean of vectors or maps over the valid steps of each clip."""
    return mean_of_valid(values_TB.transpose(0, 1).flatten(2), valid_steps_B).view(values_TB.shape[1:])


def initial_state(to_h: nn.Module, to_c: nn.Module, mean_B: Tensor, dropout: nn.Module | None = None) -> State:
    """Return h_0 and c_0 from the mean over a clip; c keeps its precision under autocast."""
    drop = dropout or nn.Identity()
    return torch.tanh(to_h(drop(mean_B))), torch.tanh(to_c(drop(mean_B)).to(mean_B.dtype))
