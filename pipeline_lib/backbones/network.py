"""What a family of backbones hands over: a network up to its last feature map, and how to feed it.

Shape suffixes: N frames or clips, C colour channels, T frames of a clip, S steps, H W pixels or cells, L tokens, D feature
channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


class Preprocessing(NamedTuple):
    """Mean and standard deviation of each input channel, to normalise pixels with values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Timing:
    """Which frames of a clip a network takes, and where its steps are. The default is a step for each frame."""

    stride: int = 1
    """Frames from one step to the next, of those that the network takes."""
    first: int = 0
    """Position of the frame in the middle of the first step."""
    after: int = 0
    """Frames behind its middle without which a step does not exist."""
    shortest: int = 1
    """Smallest number of frames of a clip."""
    window: int | None = None
    """Number of frames that the network takes, if it takes no other. From longer clips it takes every n-th frame."""
    multiple: int = 1
    """The network takes a multiple of this number of frames."""

    def frames(self, num_frames: int) -> tuple[int, ...]:
        """Return the indices of the frames that the network takes; the last one is repeated where frames are missing."""
        taken = self._thinned(num_frames)
        return (*taken, *(taken[-1:] * (-len(taken) % (self.window or self.multiple))))

    def steps(self, num_frames: int) -> tuple[int, ...]:
        """Return the index of the frame in the middle of each step."""
        taken = self.frames(num_frames)
        return tuple(taken[position] for position in range(self.first, len(taken) - self.after, self.stride))

    def _thinned(self, num_frames: int) -> tuple[int, ...]:
        """Return every n-th frame, or evenly spread ones if more than one step would have only repeated frames."""
        if self.window is None:
            return tuple(range(num_frames))
        taken = tuple(range(0, num_frames, math.ceil(num_frames / self.window)))
        if len(taken) >= self.window - self.stride:
            return taken
        return tuple(position * num_frames // self.window for position in range(self.window))


@dataclass(frozen=True)
class Network:
    """A network up to its last feature map, and how to feed it."""

    extractor: nn.Module
    """From frames_NCHW to a map_NDHW, or from clips_NCTHW to a map_NDSHW."""
    preprocessing: Preprocessing = IMAGENET
    own_size: int = 224
    """Side in pixels of the frames that the network was made for."""
    fixed_size: int | None = None
    """Side in pixels of the frames, if the network supports no other."""
    timing: Timing = Timing()
    prefix: str = ""
    """Beginning of the extractor's weight names that published state dicts do not have."""
    weights_description: str = ""


class TokenNetwork(nn.Module, ABC):
    """A network that knows its layers, such as a transformer whose tokens are the cells of a map, or C3D with its windows."""

    @abstractmethod
    def layers(self) -> list[list[nn.Module]]:
        """Return the modules of each layer, first to last; each layer is a block that can be tuned."""


def map_of_tokens(tokens_NLD: Tensor, *, steps: int | None = None) -> Tensor:
    """Arrange the tokens of square frames as a map_NDHW, or with `steps` as a map_NDSHW.

    Raises:
        ValueError: the tokens of a frame are no square.
    """
    per_frame = tokens_NLD.shape[1] // (steps or 1)
    side = math.isqrt(per_frame)
    if side * side != per_frame or per_frame * (steps or 1) != tokens_NLD.shape[1]:
        raise ValueError(f"{tokens_NLD.shape[1]} tokens are no square map")
    size = (side, side) if steps is None else (steps, side, side)
    return tokens_NLD.transpose(1, 2).unflatten(2, size)
