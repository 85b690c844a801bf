"""ALSTM's recurrence over the frames: attention, glimpse and LSTM, by Triton kernels where they work, else by autograd."""

# B batch, T steps of a clip, I cells, D channels, U units, V width of the scorer

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline_lib.networks import alstm_gpu
from pipeline_lib.networks.attention import Attention, Step, glimpse
from pipeline_lib.networks.lstm import LSTMCell, LSTMStack, State

logger = logging.getLogger(__name__)


def attention_lstm(
    attention: Attention,
    cells: LSTMStack,
    features_BTID: Tensor,
    ahead: Tensor,
    states: Sequence[State],
    *,
    carry_state: bool,
) -> tuple[Tensor, Tensor]:
    """Return the last layer's h of every frame, outputs_BTU, and attention_BTI.

    `ahead` is what `Attention.look_ahead` returns, frames first: TBV or TBIV. `states` are the first (h, c) of each layer.
    """
    if carry_state and len(cells) == 1 and _has_kernels(features_BTID):
        return _by_kernels(attention, cells, features_BTID, ahead, *states[0])
    return _by_autograd(attention, cells, features_BTID, ahead, states, carry_state=carry_state)


def _by_autograd(
    attention: Attention,
    cells: LSTMStack,
    features_BTID: Tensor,
    ahead: Tensor,
    states: Sequence[State],
    *,
    carry_state: bool,
) -> tuple[Tensor, Tensor]:
    attend = attention.start(ahead, state_has_cells=False)
    step = cells.start(len(ahead), states, carry_state=carry_state)
    return unroll(attend, step, features_BTID, states[-1][0])


def unroll(attend: Step, step: Step, features_BTID: Tensor, h_BU: Tensor) -> tuple[Tensor, Tensor]:
    """Loop over the frames; return h of every frame, outputs_BTU, and attention_BTI.

    `attend` takes the state before a frame and returns its attention_BI; `step` takes its glimpse and returns the next state.
    """
    outputs, maps = [], []
    for features_BID in features_BTID.unbind(1):
        attention_BI = attend(h_BU)
        h_BU = step(glimpse(attention_BI, features_BID))
        outputs.append(h_BU)
        maps.append(attention_BI)
    return torch.stack(outputs, dim=1), torch.stack(maps, dim=1)


def _by_kernels(
    attention: Attention, cells: LSTMStack, features_BTID: Tensor, ahead: Tensor, h_BU: Tensor, c_BU: Tensor
) -> tuple[Tensor, Tensor]:
    inputs = _kernel_inputs(attention, cells, features_BTID, ahead, h_BU, c_BU)
    outputs_TBU, attention_TBI = alstm_gpu.attention_lstm(inputs)
    # Contiguous, as from `stack`: a linear layer on it is then one product with its bias.
    return outputs_TBU.transpose(0, 1).contiguous(), attention_TBI.transpose(0, 1)


def _kernel_inputs(
    attention: Attention, cells: LSTMStack, features_BTID: Tensor, ahead: Tensor, h_BU: Tensor, c_BU: Tensor
) -> alstm_gpu.Inputs:
    """Return weights, states and dropout in the form that the kernels take; draws random numbers as autograd's loop does."""
    cell, state, score, draw = cells[0], attention.state, attention.score, attention.dropout.draw
    assert isinstance(cell, LSTMCell)
    assert cell.input.bias is not None
    assert state is not None
    state_factors_TBU = draw(ahead, (len(ahead), *h_BU.shape))
    hidden_factors_TBV = draw(ahead, (*ahead.shape[:2], state.out_features))
    pooled = attention.scorer == "pooled"
    return alstm_gpu.Inputs(
        features_BTID=features_BTID,
        ahead=ahead,
        state_VU=state.weight,
        state_bias_V=state.bias,
        score=score.weight if pooled else score.weight * hidden_factors_TBV,
        score_bias=score.bias,
        joint_GS=cell.joint_weight(),
        bias_G=cell.input.bias,
        h_BU=h_BU,
        c_BU=c_BU,
        state_factors_TBU=state_factors_TBU,
        hidden_factors_TBV=hidden_factors_TBV if pooled else None,
    )


def _has_kernels(features_BTID: Tensor) -> bool:
    """Whether the kernels compute this: on a GPU, in fp32, and no gradient of the features is asked for."""
    if not features_BTID.is_cuda or features_BTID.dtype != torch.float32 or features_BTID.requires_grad:
        return False
    return not torch.is_autocast_enabled("cuda") and _kernels_work()


@functools.cache
def _kernels_work() -> bool:
    """Whether Triton compiles the kernels for this machine's GPU; tried once."""
    sizes = {"features_BTID": (1, 1, 1, 1), "ahead": (1, 1, 1, 1), "state_VU": (1, 1), "state_bias_V": (1,)}
    sizes |= {"score": (1, 1, 1), "score_bias": (1,), "joint_GS": (4, 2), "bias_G": (4,)}
    sizes |= {"h_BU": (1, 1), "c_BU": (1, 1), "state_factors_TBU": (1, 1, 1)}
    tensors = {name: torch.ones(size, device="cuda") for name, size in sizes.items()}
    try:
        alstm_gpu.attention_lstm(alstm_gpu.Inputs(**tensors, hidden_factors_TBV=None))
    except Exception as error:  # no Triton, no C compiler, an unknown GPU: exceptions of many types
        logger.info("ALSTM without Triton: %s", error)
        return False
    return True
