"""Build backbones: image classification networks, truncated after their last feature map.

Shape suffixes: N frames, C colour channels (3), H W pixels of a frame or cells of a map, L tokens of a transformer,
K grid side, D feature channels.
"""

from __future__ import annotations

import copy
import difflib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model, get_model_weights, list_models

from pipeline_lib.backbones.weights import read_state_dict, sha256_of_weights
from pipeline_lib.compute.determinism import seeded
from pipeline_lib.errors import UserError


class Preprocessing(NamedTuple):
    """Mean and standard deviation per colour channel (RGB) to normalise frames with values from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
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


class VGGSmall(nn.Module):
    """A VGG with four blocks for small frames: 112 x 112 pixels give 7 x 7 cells with 128 channels.

    The last two blocks have two convolutions, so that a cell's receptive field can cover a pose. Pooling precedes normalisation
    and ReLU to make them cheaper.
    """

    BLOCKS = ((16, 1), (32, 1), (64, 2), (128, 2))
    """Channels and convolutions of each block."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for channels, convolutions in self.BLOCKS:
            for index in range(convolutions):
                layers.append(nn.Conv2d(channels_in, channels, 3, padding=1, bias=False))
                if index == convolutions - 1:
                    layers.append(nn.MaxPool2d(2))
                layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                channels_in = channels
        self.features = nn.Sequential(*layers)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Return the last feature map."""
        return self.features(frames_NCHW)


class PatchTokens(nn.Module):
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


class Backbone(nn.Module):
    """A network up to its last feature map, pooled to a grid. Create it with `build_backbone`."""

    def __init__(self, name: str, extractor: nn.Module, *, grid: int, weights_description: str) -> None:
        super().__init__()
        self.name = name
        self.extractor = extractor
        self.grid = grid
        self.weights_description = weights_description
        self.weights_sha256 = sha256_of_weights(extractor.state_dict())
        self.preprocessing = PLUS_MINUS_ONE if name.startswith(("googlenet", "inception")) else IMAGENET
        self.fixed_size = _default_size(name) if name.startswith(FIXED_SIZE) else None
        self.channels, *_ = self.map_shape(self.fixed_size or 224)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Return features_NKKD (channels last) of normalised frames."""
        map_NDHW = self.extractor(frames_NCHW)
        if map_NDHW.shape[-2:] != (self.grid, self.grid):
            map_NDHW = nn.functional.adaptive_avg_pool2d(map_NDHW, self.grid)
        return map_NDHW.permute(0, 2, 3, 1)

    def map_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return (D, H, W) of the feature map of a square frame before pooling to the grid, traced on the meta device.

        Raises:
            UserError: the network does not support frames of this size.
        """
        if self.fixed_size not in (None, image_size):
            raise UserError(f"features.image_size = {image_size}: {self.name} supports only {self.fixed_size}")
        on_meta = copy.deepcopy(self.extractor).to("meta")
        try:
            map_NDHW = on_meta(torch.empty(2, 3, image_size, image_size, device="meta"))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"features.image_size = {image_size} is too small for {self.name} ({reason})") from None
        channels, height, width = map_NDHW.shape[1:]
        return channels, height, width


def build_backbone(name: str, weights: str, *, grid: int, seed: int, weights_file: Path | None = None) -> Backbone:
    """Build a torchvision classification network (or `vgg_small`) up to its last feature map, in evaluation mode.

    Args:
        name: name of the network, as in `torchvision.models.list_models`.
        weights: `imagenet` (torchvision's default weights, downloaded), `random` (from `seed`), or a state dict's path.
        grid: side of the grid that the feature map is pooled to.
        seed: seed of random weights.
        weights_file: file with a state dict that replaces `weights`, for example from the finetune stage.

    Raises:
        UserError: unknown network, or weights that are not available, not readable or do not match the network.
    """
    check_name(name)
    if weights_file is None and weights not in ("imagenet", "random"):
        weights_file = Path(weights)
    if weights_file is not None:
        extractor = cut_off(name, _initialise(name, seed))
        load_weights(extractor, name, weights_file)
        description = "state dict"
    elif weights == "imagenet":
        extractor = cut_off(name, _download(name))
        description = f"imagenet: {get_model_weights(name)['DEFAULT']}"
    else:
        extractor = cut_off(name, _initialise(name, seed))
        description = f"random: seed {seed}"
    return Backbone(name, extractor, grid=grid, weights_description=description).eval()


def check_name(name: str) -> None:
    """Raise UserError, with similar names, if there is no backbone with this name."""
    known = [*list_models(module=torchvision.models), "vgg_small"]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or ["vgg16"]
        raise UserError(
            f"features.backbone = {name}: torchvision has no classification network with this name; similar: {', '.join(near)}"
        )


def cut_off(name: str, network: nn.Module) -> nn.Module:
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


def load_weights(extractor: nn.Module, name: str, path: Path) -> None:
    """Load a state dict in place; weights that the extractor does not have (a classifier's) are ignored.

    Raises:
        UserError: the file cannot be read, or a weight is missing or has another shape.
    """
    state = read_state_dict(path)
    wanted = {key: value for key, value in extractor.state_dict().items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise UserError(
            f"features.weights: {path} does not fit {name}: {len(wrong)} of {len(wanted)} weights are missing "
            f"or have another shape ({', '.join(wrong[:3])}, ...); give this network's state dict"
        )
    extractor.load_state_dict({key: state[key] for key in wanted}, strict=False)


def _initialise(name: str, seed: int) -> nn.Module:
    """Return a network with seeded random weights, without advancing the global random generator."""
    with seeded(seed):
        if name == "vgg_small":
            return VGGSmall()
        options: dict[str, object] = {}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True
        if name.startswith("vit"):
            options["image_size"] = _default_size(name)
        return get_model(name, weights=None, **options)


def _download(name: str) -> nn.Module:
    if name == "vgg_small":
        raise UserError("features.weights = imagenet: vgg_small has none; use `random`, a path, or the finetune stage")
    try:
        return get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"features.weights = imagenet: torchvision could not download the weights of {name} "
            f"({' '.join(str(error).split())}); offline, set `features.weights: PATH` to a local state dict"
        ) from None


def _default_size(name: str) -> int:
    height, _ = get_model_weights(name)["DEFAULT"].meta["min_size"]
    return height
