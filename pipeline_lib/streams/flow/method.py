"""What an optical flow method provides.

Shape suffixes: N consecutive images, M = N - 1 flows, S side in pixels, C colour channels (3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FlowFunction = Callable[[np.ndarray], np.ndarray]
"""Returns flows_MSS2 (float32; x to the right, y downwards, in pixels) from each of N consecutive images to the next one.
The images are uint8: grey (NSS) or RGB (NSSC)."""


@dataclass(frozen=True)
class FlowMethod:
    """An optical flow method that several threads share."""

    start: Callable[[], FlowFunction]
    """Returns a function for one thread."""
    is_grey: bool
    """Whether it takes grey images instead of RGB."""
