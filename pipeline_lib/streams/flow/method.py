"""What an optical flow method provides.

Shape suffixes: S side in pixels, C colour channels (3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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
