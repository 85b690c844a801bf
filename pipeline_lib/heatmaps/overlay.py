"""Draw attention in colour over a frame.

The article blends the colour map over the whole frame, which also tints pixels below the percentile. Here these keep their
colour, and opacity rises smoothly above the percentile: the scene stays visible, and there are no hard edges, which the K x K
map could not support. On the scale of shares there is no percentile, and opacity is proportional to the level.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from PIL import Image

from pipeline_lib.errors import UserError
from pipeline_lib.heatmaps.maps import percentile_level

FADE_LEVELS = 56
"""Number of levels above the percentile over which opacity rises to its maximum."""


def palette(colormap: str) -> np.ndarray:
    """Return the 256 colours (uint8 RGB, 256 x 3) of one of matplotlib's colour maps.

    Raises:
        UserError: matplotlib has no such colour map.
    """
    if colormap not in matplotlib.colormaps:
        raise UserError(f"heatmaps.colormap = {colormap!r}: matplotlib has no such colour map; turbo is the default")
    colours: np.ndarray = matplotlib.colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    return colours


class Overlay:
    """Draw levels of attention over frames with one palette, opacity and percentile."""

    def __init__(self, colormap: str, opacity: float, percentile: float | None) -> None:
        """Prepare a colour map of matplotlib; `cividis` and `viridis` suit colour-blind viewers.

        With `percentile` None opacity is proportional to the level.

        Raises:
            UserError: matplotlib has no such colour map.
        """
        self._palette = palette(colormap).tobytes()
        self._opacity = opacity
        self._percentile = percentile

    def draw(self, frame: Image.Image, levels_SS: np.ndarray) -> None:
        """Draw levels (uint8, the size of the frame) over an RGB frame in place."""
        levels = Image.fromarray(levels_SS)
        alpha = levels.point(self._alpha_table(levels))
        levels.putpalette(self._palette)
        frame.paste(levels.convert("RGB"), (0, 0), alpha)

    def _alpha_table(self, levels: Image.Image) -> list[int]:
        """Return the opacity (0 to 255) of each level: 0 up to the percentile, then a smooth step to the maximum."""
        if self._percentile is None:
            return [round(self._opacity * level) for level in range(256)]
        threshold = percentile_level(levels.histogram(), self._percentile)
        rise = np.clip((np.arange(256) - threshold) / FADE_LEVELS, 0, 1)
        smooth_step = rise * rise * (3 - 2 * rise)
        return [int(alpha) for alpha in np.ceil(255 * self._opacity * smooth_step)]
