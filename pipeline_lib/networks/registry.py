"""The models by name. Each is one module: features_BTKKD and valid_frames_B in, logits_BTC and attention_BTKK out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pipeline_lib.errors import UserError
from pipeline_lib.networks.alstm import ALSTM
from pipeline_lib.networks.conv_alstm import ConvALSTM
from pipeline_lib.networks.frame_pool import FramePool
from pipeline_lib.networks.normalisation import Normalised
from pipeline_lib.params import ModelParams


@dataclass(frozen=True)
class ModelKind:
    """What tells one model from another when it is built and trained."""

    network: Callable[..., nn.Module]
    """Takes channels, grid, num_classes, and those of `ModelParams` that it knows."""
    gains_from_bf16: bool = False
    """Whether training in bf16 pays: it halves the time of 3x3 convolutions, and only slows products of a few rows."""


MODELS: dict[str, ModelKind] = {
    "alstm": ModelKind(ALSTM),
    "conv_alstm": ModelKind(ConvALSTM, gains_from_bf16=True),
    "attention_pool": ModelKind(FramePool),
    "lrcn": ModelKind(ALSTM),
    "mean_pool": ModelKind(FramePool),
}


def model_kind(name: str) -> ModelKind:
    """Return what is registered under a model's name.

    Raises:
        UserError: no model has this name.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; train.models accepts {', '.join(MODELS)}")
    return MODELS[name]


def build_model(params: ModelParams, *, channels: int, grid: int, num_classes: int) -> nn.Module:
    """Return a model with random weights, drawn from torch's global generator.

    Raises:
        UserError: no model has this name.
    """
    network = model_kind(params.model).network
    known = inspect.signature(network).parameters
    options = {name: value for name, value in params if name in known}
    model = network(channels=channels, grid=grid, num_classes=num_classes, **options)
    return Normalised(model) if params.normalise else model
