"""Read the state dicts of backbones, load them, and compute their digests."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline_lib.backbones.inflation import RGB, inflate, inflated
from pipeline_lib.backbones.network import Network
from pipeline_lib.errors import UserError

RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"mlp\.linear_1\."), "mlp.0."),
    (re.compile(r"mlp\.linear_2\."), "mlp.3."),
)
"""Patterns of weight names in older torchvision files (DenseNet, vision transformers), with their current names."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors, .pth or .pt file, without executing code from it.

    Raises:
        UserError: no such file, or not a state dict.
    """
    if not path.is_file():
        raise UserError(f"features.weights: {path}: no such file; give `imagenet`, `random` or a state dict's path")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UserError(f"features.weights: {path} is not a state dict (.pth, .pt, .safetensors): {reason}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"features.weights: {path} has no state dict; save only `model.state_dict()`")
    return {_current_name(name): tensor for name, tensor in state.items()}


def load_weights(network: Network, name: str, path: Path, channels_in: int = RGB) -> None:
    """Load a state dict in place; weights that the network does not have (a classifier's) are ignored.

    A network with another number of input channels takes the state dict of one like it, or of the network for RGB.

    Raises:
        UserError: the file cannot be read, or a weight is missing or has another shape.
    """
    extractor = network.extractor
    state = {_with_prefix(key, network.prefix): value for key, value in read_state_dict(path).items()}
    if channels_in != RGB:
        first = inflate(extractor, channels_in)
        if first in state and state[first].shape[1] == RGB:
            state[first] = inflated(state[first], channels_in)
    wanted = {key: value for key, value in extractor.state_dict().items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise UserError(
            f"features.weights: {path} does not fit {name}: {len(wrong)} of {len(wanted)} weights are missing "
            f"or have another shape ({', '.join(wrong[:3])}, ...); give this network's state dict"
        )
    extractor.load_state_dict({key: state[key] for key in wanted}, strict=False)


def sha256_of_weights(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values, in the order of names.

    Batch normalisation's counters are ignored, because they have no effect and some files lack them.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith("num_batches_tracked")):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _with_prefix(key: str, prefix: str) -> str:
    return key if key.startswith(prefix) else prefix + key


def _current_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name
