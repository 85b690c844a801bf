"""Backbones: image networks cut off at their last feature map, which is what attention looks at.

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
    """How a frame with values 0..1 is normalised: (frame - mean) / std per colour channel (RGB)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLUS_MINUS_ONE = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""What the Inception networks were trained with; torchvision has them undo ImageNet's normalisation instead."""

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
"""The child module that makes the last feature map, by the beginning of the network's name; else it is `features`."""

FIXED_SIZE = ("vit", "maxvit")
"""Families whose position embeddings fit one image size."""


class VGGSmall(nn.Module):
    """A VGG of four blocks for small frames: 112 x 112 pixels become 7 x 7 cells of 128 channels.

    Its last two blocks have two convolutions, so that a cell sees enough of the frame to tell a pose.
    Pooling comes before normalisation and ReLU, which makes them four times cheaper (ReLU and maximum commute).
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
    """A vision transformer whose patch tokens are put back in their places; the class token is left out."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.encoder = network.encoder

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Return the encoder's map, one cell a patch."""
        patches_NDHW = self.conv_proj(frames_NCHW)
        patches_NLD = patches_NDHW.flatten(2).transpose(1, 2)
        class_token_N1D = self.class_token.expand(len(patches_NLD), -1, -1)
        tokens_NLD = self.encoder(torch.cat([class_token_N1D, patches_NLD], dim=1))
        return tokens_NLD[:, 1:].transpose(1, 2).reshape(patches_NDHW.shape)


class Backbone(nn.Module):
    """A network up to its last feature map, pooled to a grid. Made by `build_backbone`."""

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
        """Turn normalised frames into features_NKKD (channels last)."""
        map_NDHW = self.extractor(frames_NCHW)
        if map_NDHW.shape[-2:] != (self.grid, self.grid):
            map_NDHW = nn.functional.adaptive_avg_pool2d(map_NDHW, self.grid)
        return map_NDHW.permute(0, 2, 3, 1)

    def map_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return (D, H, W) of the feature map of a square frame, before it is pooled to the grid; computes nothing.

        Raises:
            UserError: the network cannot take frames of this size.
        """
        if self.fixed_size not in (None, image_size):
            raise UserError(f"features.image_size = {image_size}: {self.name} takes {self.fixed_size} only")
        weightless = copy.deepcopy(self.extractor).to("meta")
        try:
            map_NDHW = weightless(torch.empty(2, 3, image_size, image_size, device="meta"))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"features.image_size = {image_size} is too small for {self.name} ({reason})") from None
        channels, height, width = map_NDHW.shape[1:]
        return channels, height, width


def build_backbone(name: str, weights: str, *, grid: int, seed: int, weights_file: Path | None = None) -> Backbone:
    """Build a torchvision classification network (or `vgg_small`) up to its last feature map, in evaluation mode.

    Args:
        name: network, as `torchvision.models.list_models` spells it.
        weights: `imagenet` (torchvision's default weights, downloaded), `random` (from `seed`), or a state dict's path.
        grid: side the feature map is pooled to.
        seed: of random weights.
        weights_file: state dict to use whatever `weights` says, such as the finetune stage's.

    Raises:
        UserError: unknown network; weights that cannot be had, read or do not fit.
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
    """Raise ValueError, with the nearest names, if no backbone is called so."""
    known = [*list_models(module=torchvision.models), "vgg_small"]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or ["vgg16"]
        raise UserError(
            f"features.backbone = {name}: no torchvision classification network is called so; near: {', '.join(near)}"
        )


def cut_off(name: str, network: nn.Module) -> nn.Module:
    """Return the part of a network that makes its last feature map; names of weights stay as they were."""
    if isinstance(network, VisionTransformer):
        return PatchTokens(network)
    last = next((module for family, module in LAST_MODULES.items() if name.startswith(family)), "features")
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for child_name, child in network.named_children():
        if child_name != "AuxLogits":
            parts[child_name] = nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child
        if child_name == last:
            break
    if name.startswith("densenet"):
        parts["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def load_weights(extractor: nn.Module, name: str, path: Path) -> None:
    """Load a state dict; what it holds beyond the extractor (a classifier) is ignored.

    Raises:
        UserError: the file cannot be read, or a weight is missing or of another shape.
    """
    state = read_state_dict(path)
    wanted = {key: value for key, value in extractor.state_dict().items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise UserError(
            f"features.weights: {path} does not fit {name}: {len(wrong)} of {len(wanted)} weights are missing "
            f"or of another shape ({', '.join(wrong[:3])}, ...); give this network's state dict"
        )
    extractor.load_state_dict({key: state[key] for key in wanted}, strict=False)


def _initialise(name: str, seed: int) -> nn.Module:
    """Return a network with seeded random weights; the global random state stays as it was, for other threads too."""
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
            f"({' '.join(str(error).split())}); without a network set `features.weights: PATH` to a local state dict"
        ) from None


def _default_size(name: str) -> int:
    height, _ = get_model_weights(name)["DEFAULT"].meta["min_size"]
    return height
