"""Upsample, scale and smooth K x K attention maps.

There are two scales. The article's is relative: it ranges from each frame's minimum to its maximum, so that every frame shows
colours, even if its map is noise. The absolute one is the share, attention times K^2, which is 1 for a uniform map. It shows
how strong the attention is, and nothing for a uniform map.

Shape suffixes: T frames of a clip, K grid side, S side of the picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d, zoom

UNIFORM = 1e-6
"""Upsampled maps with a smaller range count as uniform, because scaling would amplify rounding errors."""

FULL_SHARE = 4.0
"""Share with the maximum level; the minimum level is a share of 1."""


class MapUpsampler:
    """Upsample and smooth attention maps like scipy's `zoom` and `gaussian_filter`, by two matrix products.

    Cubic upsampling and Gaussian smoothing are linear and separable, so both together are `M_SK @ map_KK @ M_SK.T`. The
    article scales by minimum and maximum between the two, which is affine and hence commutes with smoothing.
    """

    def __init__(self, grid: int, side: int, sigma: float) -> None:
        """Prepare for maps of `grid` x `grid` cells, pictures of `side` x `side` pixels and `sigma` in pixels."""
        # grid_mode treats pixels as areas, so the centre of a cell is at the centre of its square in the picture.
        self._upsample_SK = zoom(np.eye(grid), (side / grid, 1), order=3, mode="reflect", grid_mode=True)
        smooth_SK = gaussian_filter1d(self._upsample_SK, sigma, axis=0, mode="reflect")
        self._smooth_SK = smooth_SK.astype(np.float32)
        self._upsample_SK = self._upsample_SK.astype(np.float32)

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The matrices for upsampling alone and for upsampling with smoothing, both (S, K), for use in a browser."""
        return self._upsample_SK, self._smooth_SK

    def levels(self, map_KK: np.ndarray) -> np.ndarray:
        """Return one frame's smoothed attention as uint8 (S, S).

        0 and 255 are the frame's minimum and maximum before smoothing, as in the article. A uniform map gives zeros.
        """
        upsampled_SS = _spread(self._upsample_SK, map_KK.astype(np.float32))
        low, high = float(upsampled_SS.min()), float(upsampled_SS.max())
        if high - low < UNIFORM:
            return np.zeros(upsampled_SS.shape, np.uint8)
        scaled_KK = ((map_KK - low) * (255 / (high - low)) + 0.5).astype(np.float32)
        return _spread(self._smooth_SK, scaled_KK).astype(np.uint8)

    def share_levels(self, map_KK: np.ndarray) -> np.ndarray:
        """Return one frame's smoothed shares as uint8 (S, S): 0 for a share of 1 or less, 255 for `FULL_SHARE` or more."""
        excess_KK = (map_KK * map_KK.size - 1).astype(np.float32)
        level_SS = _spread(self._smooth_SK, excess_KK) * np.float32(255 / (FULL_SHARE - 1))
        return np.clip(level_SS, 0, 255).astype(np.uint8)


def _spread(weights_SK: np.ndarray, map_KK: np.ndarray) -> np.ndarray:
    """Return `weights_SK @ map_KK @ weights_SK.T`.

    Multiplies row by row, because a single product of this size would start BLAS's threads, which cost more than they save.
    """
    rows_S1K = (weights_SK @ map_KK)[:, None, :]
    spread_S1S: np.ndarray = rows_S1K @ weights_SK.T
    return spread_S1S[:, 0, :]


def percentile_level(histogram: Sequence[int], percentile: float) -> int:
    """Return the level that a pixel must exceed to be strictly above the percentile of its picture.

    Args:
        histogram: number of pixels at each level.
        percentile: 0 to 100, as in `numpy.percentile`. That interpolates between adjacent occurring levels; no pixel is between
            them, so it is equivalent to exceed the lower one.
    """
    counts = np.cumsum(histogram)
    rank = int(percentile / 100 * (counts[-1] - 1))
    return int(np.searchsorted(counts, rank, side="right"))
