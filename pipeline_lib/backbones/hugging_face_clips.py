"""Hugging Face's networks for clips (`hf:NAME`): the tokens of VideoMAE and V-JEPA 2.

NAME is a model on the Hub (`hf:MCG-NJU/videomae-base`), a local folder with its `config.json`, or a type (`hf:videomae`,
`hf:vjepa2`) with the default configuration of transformers.

Shape suffixes: N clips, C colour channels, T frames of a clip, S steps, H W pixels of a frame or cells of a map, L tokens,
D feature channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_lib.backbones.family import Family, check_extra, import_extra, unknown
from pipeline_lib.backbones.network import Network, Timing, TokenNetwork, map_of_tokens
from pipeline_lib.compute.determinism import seeded
from pipeline_lib.errors import UserError

TYPES = ("videomae", "vjepa2")


class ClipTokens(TokenNetwork):
    """An encoder of transformers that returns its tokens as a feature map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.tubelet = network.config.tubelet_size
        if network.config.model_type == "vjepa2":
            network = network.encoder  # its predictor has no part in the features
        self.network = network

    def forward(self, clips_NCTHW: Tensor) -> Tensor:
        """Return the map_NDSHW of the last layer."""
        steps = clips_NCTHW.shape[2] // self.tubelet
        return map_of_tokens(self.network(clips_NCTHW.transpose(1, 2)).last_hidden_state, steps=steps)

    def layers(self) -> list[list[nn.Module]]:
        """Return the encoder's layers, the first with the embedding, the last with the normalisation."""
        encoder = getattr(self.network, "encoder", self.network)
        layers: list[list[nn.Module]] = [[layer] for layer in encoder.layer]
        layers[0].insert(0, self.network.embeddings)
        if self.network.layernorm is not None:
            layers[-1].append(self.network.layernorm)
        return layers


class HuggingFaceClips(Family):
    """VideoMAE and V-JEPA 2 of transformers, by `hf:NAME`."""

    input = "clip"
    prefix = "hf:"
    pretrained = "hub"

    def names(self) -> tuple[str, ...]:
        """Return the types, which are names too."""
        return TYPES

    def check(self, name: str) -> None:
        """Raise UserError if it is no name of a model on the Hub, no folder and no type, or transformers is not installed."""
        check_extra(name, "transformers", "hf")
        source = name.removeprefix(self.prefix)
        if source not in TYPES and "/" not in source and not Path(source).is_dir():
            raise unknown(name, [self.prefix + known for known in TYPES])

    def initialise(self, name: str, seed: int) -> Network:
        """Return the network with seeded random weights; only its configuration is read from a folder or the Hub."""
        transformers = import_extra(name, "transformers", "hf")
        config = _config(name)
        with seeded(seed):
            return _describe(transformers.AutoModel.from_config(config))

    def download(self, name: str) -> Network:
        """Return the network with the weights of its folder or of the Hub."""
        _config(name)
        return _describe(_pretrained(name, name.removeprefix(self.prefix)), f"hub: {name.removeprefix(self.prefix)}")

    def read(self, name: str, path: Path, seed: int, channels_in: int) -> Network:
        """Return the network with the weights of a folder, or of a state dict."""
        if not path.is_dir():
            return super().read(name, path, seed, channels_in)
        here, there = _config(name), _config(f"hf:{path}")
        if wrong := [key for key in _architecture(here) if _architecture(here)[key] != _architecture(there).get(key)]:
            raise UserError(
                f"features.weights: {path} does not fit {name}: its config.json has another {wrong[0]}; set "
                f"`features.backbone: hf:{path}`"
            )
        return _describe(_pretrained(name, str(path)))


def _config(name: str) -> Any:
    """Return the configuration that a name stands for.

    Raises:
        UserError: it cannot be read, or is of an unknown type.
    """
    transformers = import_extra(name, "transformers", "hf")
    source = name.removeprefix("hf:")
    try:
        config = (
            transformers.AutoConfig.for_model(source) if source in TYPES else transformers.AutoConfig.from_pretrained(source)
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"features.backbone = {name}: transformers finds no configuration ({reason}); give a model of the Hub, "
            "or a local folder with its config.json"
        ) from None
    if config.model_type not in TYPES:
        raise UserError(
            f"features.backbone = {name}: a {config.model_type} of transformers is no network for clips that har knows; "
            f"known: {', '.join(TYPES)}"
        )
    return config


def _architecture(config: Any) -> dict[str, Any]:
    """Return what sizes of weights and of inputs depend on."""
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "tubelet_size")
    inputs = ("image_size", "num_frames") if config.model_type == "videomae" else ("crop_size",)
    return {key: getattr(config, key) for key in (*keys, *inputs)}


def _pretrained(name: str, source: str) -> Any:
    """Return the network with the weights of a folder or of the Hub.

    Raises:
        UserError: they cannot be read or downloaded, or some are missing.
    """
    transformers = import_extra(name, "transformers", "hf")
    try:
        network, found = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # of the network, of the Hub, and of unreadable files
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"features.weights: transformers could not read the weights of {source} for {name} ({reason})"
        ) from None
    if missing := [key for key in sorted(found["missing_keys"]) if not key.startswith("predictor.")]:
        raise UserError(
            f"features.weights: {source} does not fit {name}: {len(missing)} weights are missing "
            f"({', '.join(missing[:3])}, ...); give this network's folder"
        )
    return network


def _describe(network: Any, weights_description: str = "") -> Network:
    config = network.config
    tubelet = config.tubelet_size
    if config.model_type == "videomae":
        size = config.image_size
        timing = Timing(tubelet, (tubelet - 1) // 2, shortest=config.num_frames, window=config.num_frames)
    else:
        size = config.crop_size
        timing = Timing(tubelet, (tubelet - 1) // 2, multiple=tubelet)
    return Network(
        ClipTokens(network),
        own_size=size,
        fixed_size=size,
        timing=timing,
        prefix="network.",
        weights_description=weights_description,
    )
