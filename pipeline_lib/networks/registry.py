"""The registry of models. Each takes features_BTKKD and valid_steps_B, and returns `ModelOutputs`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from pipeline_lib.errors import UserError
from pipeline_lib.networks.alstm import ALSTM
from pipeline_lib.networks.conv_alstm import ConvALSTM
from pipeline_lib.networks.frame_pool import FramePool
from pipeline_lib.networks.motion import MotionALSTM, MotionConvALSTM
from pipeline_lib.networks.normalisation import Normalised
from pipeline_lib.networks.temporal_attention import TemporalAttention
from pipeline_lib.networks.time_fusion import EarlyFusion, LateFusion, SlowFusion
from pipeline_lib.params import ModelParams


@dataclass(frozen=True)
class ModelKind:
    """Properties of a model that determine how it is built and trained."""

    network: Callable[..., nn.Module]
    """Takes channels, num_classes, and any of: grid, the fields of `ModelParams`."""
    gains_from_bf16: bool = False
    """Whether bf16 speeds up training: it does for 3x3 convolutions, but not for matrix products with few rows."""


MODELS: dict[str, ModelKind] = {
    "alstm": ModelKind(ALSTM),
    "conv_alstm": ModelKind(ConvALSTM, gains_from_bf16=True),
    "attention_pool": ModelKind(FramePool),
    "lrcn": ModelKind(ALSTM),
    "mean_pool": ModelKind(FramePool),
    "motion_conv_alstm": ModelKind(MotionConvALSTM, gains_from_bf16=True),
    "motion_alstm": ModelKind(MotionALSTM),
    "temporal_attention": ModelKind(TemporalAttention),
    "fusion_early": ModelKind(EarlyFusion, gains_from_bf16=True),
    "fusion_late": ModelKind(LateFusion),
    "fusion_slow": ModelKind(SlowFusion, gains_from_bf16=True),
}


def model_kind(name: str) -> ModelKind:
    """Return the properties of the model with this name.

    Raises:
        UserError: there is no model with this name.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; train.models accepts {', '.join(MODELS)}")
    return MODELS[name]


def build_model(params: ModelParams, *, channels: int | Sequence[int], grid: int, num_classes: int) -> nn.Module:
    """Return a model with random weights, drawn from torch's global generator.

    Args:
        params: the model and its hyper-parameters.
        channels: feature channels; of each stream if the model reads several, which it gets side by side.
        grid: cells per side.
        num_classes: number of classes.

    Raises:
        UserError: there is no model with this name.
    """
    parts = (channels,) if isinstance(channels, int) else tuple(channels)
    network = model_kind(params.model).network
    known = inspect.signature(network).parameters
    options = {name: value for name, value in (*params, ("grid", grid)) if name in known}
    model = network(channels=parts[0] if len(parts) == 1 else parts, num_classes=num_classes, **options)
    return Normalised(model, parts) if params.normalise else model
