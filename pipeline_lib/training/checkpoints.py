"""Trained models on disk: weights in safetensors, and with them everything needed to use them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pipeline_lib.errors import UserError
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import ModelParams

METADATA_KEY = "har"
"""One key, since safetensors writes several in an order that differs from run to run."""


class Metadata(BaseModel):
    """What a model is, what it tells apart, and the features it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[str, ...]
    """Names in the order of the logits."""
    channels: int
    grid: int
    params: dict[str, Any]
    """`ModelParams.recipe` of the model."""
    features: dict[str, Any]
    """Provenance of the features: backbone, digest of its weights, preprocessing, ..."""

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.params["model"])

    @property
    def attends(self) -> bool:
        """Whether its attention means anything."""
        return ModelParams.model_validate(self.params).attends

    def build(self) -> nn.Module:
        """Return the model with random weights."""
        params = ModelParams.model_validate(self.params)
        return build_model(params, channels=self.channels, grid=self.grid, num_classes=len(self.classes))


def save_checkpoint(path: Path, model: nn.Module, metadata: Metadata) -> None:
    """Write weights and metadata; equal models give equal bytes."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    text = json.dumps(metadata.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    save_file(weights, path, metadata={METADATA_KEY: text})


def load_checkpoint(path: Path) -> tuple[nn.Module, Metadata]:
    """Return the model, on the CPU and set for inference, and its metadata.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint of this project, or does not fit its own description.
    """
    weights, text = _read(path)
    metadata = _parse(path, text)
    try:
        with torch.device("meta"):  # no random weights, drawn from a generator that trainings in other threads need
            model = metadata.build()
        model.load_state_dict(weights, assign=True)
    except (ValueError, KeyError, RuntimeError) as error:
        raise _other_version(path, error) from None
    return model.eval(), metadata


def read_metadata(path: Path) -> Metadata:
    """Return what a checkpoint says of itself.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this project.
    """
    return _parse(path, _read(path)[1])


def _parse(path: Path, text: str | None) -> Metadata:
    if text is None:
        raise UserError(f"{path}: safetensors, but not a checkpoint of this project (no `{METADATA_KEY}` metadata)")
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        raise _other_version(path, error) from None


def _other_version(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path}: checkpoint of another version of this project, train again: {reason}")


def _read(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118 (not a dictionary)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train the model first") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a checkpoint, or damaged, train the model again: {error}") from None
