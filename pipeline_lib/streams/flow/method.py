"""What an optical flow method provides, and how one is found by its name.

Shape suffixes: S side in pixels, C colour channels (3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from pipeline_lib.params.stages import StreamParams

FlowFunction = Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]]
"""Returns flow_SS2 (float32; x to the right, y downwards, in pixels) from each of several consecutive images to the next one.
The images are uint8: grey (SS) or RGB (SSC)."""


@dataclass(frozen=True)
class FlowMethod:
    """An optical flow method that several threads share."""

    start: Callable[[], FlowFunction]
    """Returns a function for one thread."""
    is_grey: bool
    """Whether it takes grey images instead of RGB."""


@dataclass(frozen=True, kw_only=True)
class _Method:
    side_of: Callable[[int], int] = lambda side: side
    """Returns the side in pixels of the images that it takes, from that of the images in whose pixels flow is measured. It is
    smaller if the method finds no finer flow anyway."""


@dataclass(frozen=True)
class DecoderMethod(_Method):
    """A method that decoder processes compute. They import its module, which therefore imports no PyTorch."""

    open: Callable[[], FlowMethod]
    """Raises UserError if a library is missing."""


@dataclass(frozen=True)
class DeviceMethod(_Method):
    """A method that the process of the backbone computes, on its device."""

    open: Callable[[StreamParams, torch.device], FlowMethod]
    """Raises UserError if its weights are not available."""


def find_method(name: str) -> DecoderMethod | DeviceMethod:
    """Return the object `METHOD` of the module of a method's name."""
    method: DecoderMethod | DeviceMethod = import_module(f"pipeline_lib.streams.flow.methods.{name}").METHOD
    return method
