"""Save and load trained models: safetensors files with weights and the metadata needed to use them."""

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
"""The only metadata key, because safetensors does not write several in a fixed order."""


class Metadata(BaseModel):
    """A model's parameters, its classes, and the features it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    channels: int
    grid: int
    params: dict[str, Any]
    """`ModelParams.recipe` of the model."""
    features: dict[str, Any]
    """Provenance of the features: backbone, SHA-256 of its weights, preprocessing, ...; of several streams, in `streams`."""
    stream_channels: tuple[int, ...] | None = None
    """Channels of each stream, if the model reads several; `channels` is their sum."""

    @property
    def streams(self) -> list[dict[str, Any]]:
        """Provenance of each stream that the model reads."""
        return self.features.get("streams", [self.features])

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.params["model"])

    @property
    def attends(self) -> bool:
        """Whether the model computes attention over cells."""
        return ModelParams.model_validate(self.params).attends

    @property
    def attends_over_time(self) -> bool:
        """Whether the model computes importance."""
        return ModelParams.model_validate(self.params).attends_over_time

    def build(self) -> nn.Module:
        """Return the model with random weights."""
        params = ModelParams.model_validate(self.params)
        channels = self.stream_channels or (self.channels,)
        return build_model(params, channels=channels, grid=self.grid, num_classes=len(self.classes))


def save_checkpoint(path: Path, model: nn.Module, metadata: Metadata) -> None:
    """Write weights and metadata. Equal models give equal bytes."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    text = json.dumps(metadata.model_dump(mode="json", exclude_defaults=True), sort_keys=True, ensure_ascii=False)
    save_file(weights, path, metadata={METADATA_KEY: text})


def load_checkpoint(path: Path) -> tuple[nn.Module, Metadata]:
    """Return the model, on the CPU in evaluation mode, and its metadata.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint of this project, or its weights do not match its metadata.
    """
    weights, text = _read(path)
    metadata = _parse(path, text)
    try:
        with torch.device("meta"):  # initialising weights would advance the generator that other threads train with
            model = metadata.build()
        model.load_state_dict(weights, assign=True)
    except (ValueError, KeyError, RuntimeError) as error:
        raise _other_version(path, error) from None
    return model.eval(), metadata


def read_metadata(path: Path) -> Metadata:
    """Return the metadata of a checkpoint.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this project.
    """
    return _parse(path, _read(path)[1])


def _parse(path: Path, text: str | None) -> Metadata:
    if text is None:
        raise UserError(f"{path}: a safetensors file, but not a checkpoint of this project (no `{METADATA_KEY}` metadata)")
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        raise _other_version(path, error) from None


def _other_version(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path}: checkpoint of another version of this project; train the model again: {reason}")


def _read(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118 (not a dictionary)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train the model first") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a checkpoint, or damaged; train the model again: {error}") from None
