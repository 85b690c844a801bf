"""From a K x K attention map to a picture of it: upsampled, scaled, smoothed.

Two scales. The article's goes from each frame's least attention to its most, so that a frame always shows colours, whether the
model looked at one thing or the map is noise. The other is the share: attention times K^2, 1 where a cell has what an even
map would give it. It says how much the model looked; an even map shows nothing.

Shape suffixes: T frames of a clip, K grid side, S side of the picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d, zoom

UNIFORM = 1e-6
"""Maps whose upsampled values differ by less than this count as uniform: scaling them would show rounding noise."""

FULL_SHARE = 4.0
"""Share at which a colour is full; it begins above 1."""


class MapUpsampler:
    """Upsamples and smooths attention maps exactly as scipy's `zoom` and `gaussian_filter` do, as two matrix products.

    Cubic upsampling and Gaussian smoothing are linear and act on rows and columns alike, so that both together are
    `M_SK @ map_KK @ M_SK.T`. Scaling by minimum and maximum, which the article does between the two, is affine and
    therefore commutes with the smoothing.
    """

    def __init__(self, grid: int, side: int, sigma: float) -> None:
        """Prepare for maps of `grid` x `grid` cells, pictures of `side` x `side` pixels and `sigma` in pixels."""
        # grid_mode counts pixels as areas: the centre of a cell falls on the centre of its square in the picture.
        self._upsample_SK = zoom(np.eye(grid), (side / grid, 1), order=3, mode="reflect", grid_mode=True)
        smooth_SK = gaussian_filter1d(self._upsample_SK, sigma, axis=0, mode="reflect")
        self._smooth_SK = smooth_SK.astype(np.float32)
        self._upsample_SK = self._upsample_SK.astype(np.float32)

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """What upsamples, and what upsamples and smooths, both (S, K): all that a browser needs to do the same."""
        return self._upsample_SK, self._smooth_SK

    def levels(self, map_KK: np.ndarray) -> np.ndarray:
        """Return the smoothed picture of one frame's attention as uint8 (S, S).

        0 and 255 stand for the least and the most attention before smoothing, within this frame, as in the article.
        A uniform map gives zeros: there is nothing to point at.
        """
        upsampled_SS = _spread(self._upsample_SK, map_KK.astype(np.float32))
        low, high = float(upsampled_SS.min()), float(upsampled_SS.max())
        if high - low < UNIFORM:
            return np.zeros(upsampled_SS.shape, np.uint8)
        scaled_KK = ((map_KK - low) * (255 / (high - low)) + 0.5).astype(np.float32)
        return _spread(self._smooth_SK, scaled_KK).astype(np.uint8)

    def share_levels(self, map_KK: np.ndarray) -> np.ndarray:
        """Return the smoothed picture of one frame's shares as uint8 (S, S): 0 for 1 or less, 255 for `FULL_SHARE` or more."""
        excess_KK = (map_KK * map_KK.size - 1).astype(np.float32)
        level_SS = _spread(self._smooth_SK, excess_KK) * np.float32(255 / (FULL_SHARE - 1))
        return np.clip(level_SS, 0, 255).astype(np.uint8)


def _spread(weights_SK: np.ndarray, map_KK: np.ndarray) -> np.ndarray:
    """Return `weights_SK @ map_KK @ weights_SK.T`.

    The rows are multiplied one by one: a product of this size at once wakes BLAS's threads, which cost more than they
    save (measured with 800 x 7 x 800 on 2 busy cores: 4 ms of processor time against 0.25 ms).
    """
    rows_S1K = (weights_SK @ map_KK)[:, None, :]
    spread_S1S: np.ndarray = rows_S1K @ weights_SK.T
    return spread_S1S[:, 0, :]


def percentile_level(histogram: Sequence[int], percentile: float) -> int:
    """Return the level that a pixel must exceed to lie strictly above the percentile of its picture.

    Args:
        histogram: number of pixels at each level.
        percentile: 0 to 100, as in `numpy.percentile`. That interpolates between two neighbouring levels that occur,
            and no pixel lies between these, so that exceeding the lower one is the same.
    """
    counts = np.cumsum(histogram)
    rank = int(percentile / 100 * (counts[-1] - 1))
    return int(np.searchsorted(counts, rank, side="right"))
