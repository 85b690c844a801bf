"""A small network for small frames, trained from scratch."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from pipeline_lib.backbones.family import Family
from pipeline_lib.backbones.network import Network
from pipeline_lib.compute.determinism import seeded

BLOCKS = ((16, 1), (32, 1), (64, 2), (128, 2))
"""Channels and convolutions of each block."""


class SmallVGGs(Family):
    """`vgg_small`: a VGG with four blocks; 112 x 112 pixels give 7 x 7 cells with 128 channels."""

    input = "image"

    def names(self) -> list[str]:
        """Return the one name."""
        return ["vgg_small"]

    def initialise(self, name: str, seed: int) -> Network:
        """Return the network with seeded random weights."""
        with seeded(seed):
            return Network(nn.Sequential(OrderedDict(features=nn.Sequential(*_layers()))), own_size=112)


def _layers() -> list[nn.Module]:
    """Return the layers; pooling precedes normalisation and ReLU to make them cheaper.

    The last two blocks have two convolutions, so that a cell's receptive field can cover a pose.
    """
    layers: list[nn.Module] = []
    channels_in = 3
    for channels, convolutions in BLOCKS:
        for index in range(convolutions):
            layers.append(nn.Conv2d(channels_in, channels, 3, padding=1, bias=False))
            if index == convolutions - 1:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            channels_in = channels
    return layers
