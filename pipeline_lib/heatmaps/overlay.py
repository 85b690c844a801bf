"""Attention in colour over a frame.

The article blends the whole colour map over the frame, which dims and tints the four fifths that the percentile had just
set to zero. Here a pixel below the percentile keeps its own colour, and above it the colour comes in softly with the
value: the scene stays visible, and no hard edge suggests a border that the K x K map does not know. On the scale of shares
there is no percentile: a pixel is coloured as far as its share is above an even one.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from PIL import Image

from pipeline_lib.errors import UserError
from pipeline_lib.heatmaps.maps import percentile_level

FADE_LEVELS = 56
"""Levels above the percentile over which the colour comes in."""


def palette(colormap: str) -> np.ndarray:
    """Return the 256 colours (uint8 RGB, 256 x 3) of one of matplotlib's colour maps.

    Raises:
        UserError: matplotlib knows no such colour map.
    """
    if colormap not in matplotlib.colormaps:
        raise UserError(f"heatmaps.colormap = {colormap!r}: matplotlib has no such colour map; turbo is the default")
    colours: np.ndarray = matplotlib.colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    return colours


class Overlay:
    """Draws pictures of attention over frames: one palette, one opacity, one percentile."""

    def __init__(self, colormap: str, opacity: float, percentile: float | None) -> None:
        """Look up the colour map, any of matplotlib's; of those `cividis` and `viridis` survive colour blindness.

        With `percentile` None the colour comes in evenly from the lowest level to the highest.

        Raises:
            UserError: matplotlib knows no such colour map.
        """
        self._palette = palette(colormap).tobytes()
        self._opacity = opacity
        self._percentile = percentile

    def draw(self, frame: Image.Image, levels_SS: np.ndarray) -> None:
        """Draw levels (uint8, of the frame's size) over an RGB frame, in place."""
        levels = Image.fromarray(levels_SS)
        alpha = levels.point(self._alpha_table(levels))
        levels.putpalette(self._palette)
        frame.paste(levels.convert("RGB"), (0, 0), alpha)

    def _alpha_table(self, levels: Image.Image) -> list[int]:
        """Return the opacity (0 to 255) of each level: nothing up to the percentile, then a smooth step upwards."""
        if self._percentile is None:
            return [round(self._opacity * level) for level in range(256)]
        threshold = percentile_level(levels.histogram(), self._percentile)
        rise = np.clip((np.arange(256) - threshold) / FADE_LEVELS, 0, 1)
        smooth_step = rise * rise * (3 - 2 * rise)
        return [int(alpha) for alpha in np.ceil(255 * self._opacity * smooth_step)]
