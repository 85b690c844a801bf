"""Build backbones: networks of any family up to their last feature map.

Shape suffixes: N frames or clips, C colour channels, T frames of a clip, S steps, H W pixels of a frame or cells of a map,
K grid side, D feature channels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_lib.backbones.family import Family, Input, unknown
from pipeline_lib.backbones.inflation import RGB, inflate, preprocessing_of
from pipeline_lib.backbones.network import Network
from pipeline_lib.backbones.registry import FAMILIES
from pipeline_lib.backbones.weights import sha256_of_weights
from pipeline_lib.errors import UserError
from pipeline_lib.params.stages import path_of_weights

PROBE_FRAMES = 32
"""Frames of the clip that shapes are traced with if no other number is given; every network takes it."""


class Backbone(nn.Module):
    """A network up to its last feature map, pooled to a grid. Create it with `build_backbone`."""

    def __init__(
        self,
        name: str,
        network: Network,
        *,
        input: Input,  # noqa: A002
        grid: int | Literal["native"],
        channels_in: int,
        image_size: int | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.input = input
        self.extractor = network.extractor
        self.channels_in = channels_in
        self.preprocessing = network.preprocessing if channels_in == RGB else preprocessing_of(channels_in)
        self.own_size = network.own_size
        self.fixed_size = network.fixed_size
        self.weights_description = network.weights_description
        self.weights_sha256 = sha256_of_weights(network.extractor.state_dict())
        self._timing = network.timing
        self.channels, side, _ = self.map_shape(image_size or network.own_size)
        self.grid = side if grid == "native" else grid

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features_NKKD of normalised frames_NCHW, or features_NSKKD of the normalised frames_NCTHW of clips.

        The frames of a clip are those that `frames_of_clip` names.
        """
        map_ = self.extractor(pixels)
        if self.input == "image":
            if map_.shape[-2:] != (self.grid, self.grid):
                map_ = nn.functional.adaptive_avg_pool2d(map_, self.grid)
            return map_.permute(0, 2, 3, 1)
        if map_.shape[-2:] != (self.grid, self.grid):
            map_ = nn.functional.adaptive_avg_pool3d(map_, (None, self.grid, self.grid))
        return map_.permute(0, 2, 3, 4, 1)

    def channels_last(self) -> Backbone:
        """Store the weights of convolutions channels last, 2-D and 3-D alike, which tensor cores are fastest with."""
        for weight in self.parameters():
            if layout := {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.ndim):
                weight.data = weight.data.contiguous(memory_format=layout)
        return self

    def frames_of_clip(self, num_frames: int) -> tuple[int, ...]:
        """Return the indices of a clip's frames that the network takes; the last may be repeated.

        Raises:
            UserError: the clip is shorter than the network's window.
        """
        self._check_length(num_frames)
        return self._timing.frames(num_frames)

    def step_frames(self, num_frames: int) -> tuple[int, ...]:
        """Return the index of the frame in the middle of each step of a clip, increasing.

        Raises:
            UserError: the clip is shorter than the network's window.
        """
        self._check_length(num_frames)
        return self._timing.steps(num_frames)

    def map_shape(self, image_size: int, num_frames: int = PROBE_FRAMES) -> tuple[int, int, int]:
        """Return (D, H, W) of the feature map of square frames before pooling to the grid, traced on the meta device.

        Args:
            image_size: side of the frames in pixels.
            num_frames: frames of a clip, if the network takes clips.

        Raises:
            UserError: the network does not support frames of this size, or clips of this length.
        """
        if self.fixed_size not in (None, image_size):
            raise UserError(f"features.image_size = {image_size}: {self.name} supports only {self.fixed_size}")
        frames = () if self.input == "image" else (len(self.frames_of_clip(num_frames)),)
        try:
            map_ = on_meta(self.extractor, torch.empty(2, self.channels_in, *frames, image_size, image_size, device="meta"))
        except (RuntimeError, ValueError, AssertionError) as error:
            fault = "is too small for" if isinstance(error, RuntimeError) else "does not suit"
            reason = str(error).splitlines()[0]
            raise UserError(f"features.image_size = {image_size} {fault} {self.name} ({reason})") from None
        return map_.shape[1], map_.shape[-2], map_.shape[-1]

    def _check_length(self, num_frames: int) -> None:
        if num_frames < self._timing.shortest:
            raise UserError(
                f"chunk.frames = {num_frames}: {self.name} needs clips of at least {self._timing.shortest} frames; raise it, "
                "or use another network"
            )


def build_backbone(
    name: str,
    weights: str,
    *,
    grid: int | Literal["native"],
    seed: int,
    weights_file: Path | None = None,
    channels_in: int = RGB,
    image_size: int | None = None,
) -> Backbone:
    """Build a network up to its last feature map, in evaluation mode.

    Args:
        name: name of the network: torchvision's for images or clips, `vgg_small`, `timm:NAME` or `hf:NAME`.
        weights: `imagenet` (torchvision's and timm's published weights for images), `kinetics` (torchvision's for clips), `hub`
            (of `hf:NAME`), `random` (from `seed`), or the path of a state dict (of `hf:NAME` also of a folder).
        grid: side of the grid that the feature map is pooled to; `native` is the map's own side, without pooling.
        seed: seed of random weights.
        weights_file: file with a state dict that replaces `weights`, for example from the finetune stage.
        channels_in: channels of the images; if not 3, the first convolution is averaged over RGB and rescaled.
        image_size: side in pixels of the frames that `native` means; by default, that which the network was made for.

    Raises:
        UserError: unknown network, or weights that are not available, not readable or do not match the network.
    """
    family = check_name(name)
    if family.input == "clip" and channels_in != RGB:
        raise UserError(
            f"features.backbone = {name}: takes clips of RGB frames, not {channels_in} channels; use an image network"
        )
    network = _network(family, name, weights, weights_file or path_of_weights(weights), seed, channels_in)
    return Backbone(name, network, input=family.input, grid=grid, channels_in=channels_in, image_size=image_size).eval()


def check_name(name: str, input: Input | None = None) -> Family:  # noqa: A002
    """Return the family of a backbone by its name.

    Args:
        name: name of the network.
        input: what the stream gives: images (frames, or stacks of flows) or clips.

    Raises:
        UserError: there is no backbone with this name (similar ones are named), or it does not take this input.
    """
    family = next((family for family in FAMILIES if family.has(name)), None)
    if family is None:
        raise unknown(name, [known for family in FAMILIES if not family.prefix for known in family.names()])
    family.check(name)
    if input == "image" and family.input == "clip":
        raise UserError(
            f"features.backbone = {name}: takes clips, not single images; set `input: clip`, or use an image network"
        )
    if input == "clip" and family.input == "image":
        raise UserError(
            f"features.backbone = {name}: takes single images, not clips; set `input: frame` or `flow`, or use a network for "
            "clips such as mc3_18"
        )
    return family


def on_meta(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Return a module's output without computing it, for inputs on the meta device."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return torch.func.functional_call(module, {name: tensor.to("meta") for name, tensor in tensors}, inputs)


def _network(family: Family, name: str, weights: str, path: Path | None, seed: int, channels_in: int) -> Network:
    """Return the network with its weights, for `channels_in` input channels."""
    if path is not None:
        return replace(family.read(name, path, seed, channels_in), weights_description="state dict")
    if weights == "random":
        network = replace(family.initialise(name, seed), weights_description=f"random: seed {seed}")
    elif weights == family.pretrained:
        network = family.download(name)
    else:
        raise _no_such_weights(family, name, weights)
    if channels_in != RGB:
        inflate(network.extractor, channels_in)
    return network


def _no_such_weights(family: Family, name: str, weights: str) -> UserError:
    choices = ", ".join([f"`{family.pretrained}`"] * bool(family.pretrained) + ["`random`"])
    return UserError(f"features.weights = {weights}: {name} has none; give {choices}, or a path such as ./{weights}")
