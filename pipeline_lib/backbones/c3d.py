"""C3D of Tran et al. 2015: 3x3x3 convolutions, up to its last feature map.

The last map is that after conv5b: frames of 112 x 112 pixels give 7 x 7 cells with 512 channels, the grid of the other
backbones. The next layer, pool5, would leave 4 x 4, and the paper's features are those of fc6 behind it, which have no cells.

The network sees windows of 16 frames, as in the paper, but side by side instead of with an overlap of 8. A step stands for 8
frames; a rest of 8 or fewer frames is a window of its own, with one step.

Weights are named as in PyTorch's published conversions (`conv1`, `conv2`, `conv3a`, ...; fully connected layers are
ignored). Those expect pixels from 0 to 255 less a mean colour. No weights are downloaded: give the path of a state dict, or
`random`.

Shape suffixes: N clips, C colour channels, T frames, S steps, H W pixels of a frame or cells of a map, D feature channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline_lib.backbones.family import Family
from pipeline_lib.backbones.network import Network, Preprocessing, Timing, TokenNetwork
from pipeline_lib.compute.determinism import seeded

WINDOW, STEP = 16, 8
"""Frames that the network sees together, and frames of a step."""

LAYERS = (
    ("conv1", 64, (1, 2, 2)),
    ("conv2", 128, 2),
    ("conv3a", 256, None),
    ("conv3b", 256, 2),
    ("conv4a", 512, None),
    ("conv4b", 512, 2),
    ("conv5a", 512, None),
    ("conv5b", 512, None),
)
"""Name, channels, and size of the max pooling behind it, of each convolution."""

MEAN_COLOUR = (104 / 255, 117 / 255, 128 / 255)
"""Mean of the Sports-1M weights as mmaction2's configuration of them has it."""


class WindowedC3D(TokenNetwork):
    """The layers up to conv5b, over windows of 16 frames."""

    def __init__(self) -> None:
        super().__init__()
        channels_in = 3
        for name, channels, pooling in LAYERS:
            self.add_module(name, nn.Conv3d(channels_in, channels, 3, padding=1))
            self.add_module(name.replace("conv", "relu"), nn.ReLU(inplace=True))
            if pooling:
                self.add_module(name.replace("conv", "pool"), nn.MaxPool3d(pooling))
            channels_in = channels

    def forward(self, clips_NCTHW: Tensor) -> Tensor:
        """Return the map_NDSHW of all windows, one after the other."""
        return torch.cat([self._map(window_NCTHW) for window_NCTHW in clips_NCTHW.split(WINDOW, dim=2)], dim=2)

    def _map(self, map_: Tensor) -> Tensor:
        for layer in self.children():
            map_ = layer(map_)
        return map_

    def layers(self) -> list[list[nn.Module]]:
        """Return the modules of each resolution; pooling ends one."""
        blocks: list[list[nn.Module]] = [[]]
        for layer in self.children():
            blocks[-1].append(layer)
            if isinstance(layer, nn.MaxPool3d):
                blocks.append([])
        return blocks


class C3D(Family):
    """`c3d`: the network for clips."""

    input = "clip"

    def names(self) -> list[str]:
        """Return the one name."""
        return ["c3d"]

    def initialise(self, name: str, seed: int) -> Network:
        """Return the network with seeded random weights."""
        with seeded(seed):
            extractor = WindowedC3D()
        return Network(
            extractor,
            Preprocessing(MEAN_COLOUR, (1 / 255,) * 3),
            own_size=112,
            timing=Timing(STEP, first=(STEP - 1) // 2, multiple=STEP),
        )
