"""torchvision's image classification networks, truncated after their last feature map.

Shape suffixes: N frames, C colour channels, H W pixels of a frame or cells of a map, L tokens of a transformer,
D feature channels.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model, get_model_weights, list_models

from pipeline_lib.backbones.family import Family, not_downloaded
from pipeline_lib.backbones.network import IMAGENET, Network, Preprocessing, TokenNetwork
from pipeline_lib.compute.determinism import seeded

PLUS_MINUS_ONE = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Preprocessing of the Inception networks; torchvision converts from ImageNet's inside the network instead."""

LAST_MODULES = {
    "resnet": "layer4",
    "resnext": "layer4",
    "wide_resnet": "layer4",
    "googlenet": "inception5b",
    "inception": "Mixed_7c",
    "regnet": "trunk_output",
    "shufflenet": "conv5",
    "mnasnet": "layers",
    "maxvit": "blocks",
    "swin": "permute",
}
"""Child module with the last feature map, by the prefix of the network's name. The default is `features`."""

FIXED_SIZE = ("vit", "maxvit")
"""Families with position embeddings for a single image size."""


class PatchTokens(TokenNetwork):
    """A vision transformer that returns its patch tokens as a feature map, without the class token."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.encoder = network.encoder

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Return the feature map of the encoder, one cell per patch."""
        patches_NDHW = self.conv_proj(frames_NCHW)
        patches_NLD = patches_NDHW.flatten(2).transpose(1, 2)
        class_token_N1D = self.class_token.expand(len(patches_NLD), -1, -1)
        tokens_NLD = self.encoder(torch.cat([class_token_N1D, patches_NLD], dim=1))
        return tokens_NLD[:, 1:].transpose(1, 2).reshape(patches_NDHW.shape)

    def layers(self) -> list[list[nn.Module]]:
        """Return the encoder's layers, the first with the projection of patches, the last with the normalisation."""
        layers: list[list[nn.Module]] = [[layer] for layer in self.encoder.layers]
        layers[0].insert(0, self.conv_proj)
        layers[-1].append(self.encoder.ln)
        return layers


class TorchvisionImages(Family):
    """The networks of `torchvision.models`."""

    input = "image"
    pretrained = "imagenet"

    def names(self) -> list[str]:
        """Return the names as in `torchvision.models.list_models`."""
        return list_models(module=torchvision.models)

    def initialise(self, name: str, seed: int) -> Network:
        """Return the network with seeded random weights."""
        options: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True
        if name.startswith("vit"):
            options["image_size"] = _default_size(name)
        with seeded(seed):
            return _describe(name, get_model(name, weights=None, **options))

    def download(self, name: str) -> Network:
        """Return the network with torchvision's default weights."""
        try:
            network = get_model(name, weights="DEFAULT")
        except (OSError, RuntimeError) as error:
            raise not_downloaded(name, "imagenet", "torchvision", error) from None
        return _describe(name, network, f"imagenet: {get_model_weights(name)['DEFAULT']}")


def _describe(name: str, network: nn.Module, weights_description: str = "") -> Network:
    fixed_size = _default_size(name) if name.startswith(FIXED_SIZE) else None
    return Network(
        _cut_off(name, network),
        PLUS_MINUS_ONE if name.startswith(("googlenet", "inception")) else IMAGENET,
        own_size=fixed_size or 224,
        fixed_size=fixed_size,
        weights_description=weights_description,
    )


def _cut_off(name: str, network: nn.Module) -> nn.Module:
    """Return the network up to its last feature map; weights keep their names."""
    if isinstance(network, VisionTransformer):
        return PatchTokens(network)
    last = next((module for family, module in LAST_MODULES.items() if name.startswith(family)), "features")
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for child_name, child in network.named_children():
        if child_name != "AuxLogits":
            children[child_name] = nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child
        if child_name == last:
            break
    if name.startswith("densenet"):
        children["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(children)


def _default_size(name: str) -> int:
    height, _ = get_model_weights(name)["DEFAULT"].meta["min_size"]
    return height
