"""Encode optical flow as uint8 images that a network pretrained on photographs can take.

x and y: the field's mean vector (the camera's motion) is subtracted, then [-bound, bound] is mapped to [1, 255]. Zero is 128,
exactly in the middle, so that `256 - x` mirrors a field exactly.

Magnitude: [0, bound] is mapped to [128, 255]. A still area is therefore grey, 128 in all channels, which normalisation turns
into almost zero. Convolutions pad with zero, so that such an area has no edge at the image's border. For a frozen ImageNet
network this is better than [0, 255], with which still areas have a strong colour (see docs/performance.md).

Shape suffixes: C channels, S side in pixels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

CENTRE, HALF_RANGE = 128, 127
"""Value of zero motion, and the largest difference from it."""


def encode_flow(flow_SS2: np.ndarray, bound: float, *, magnitude: bool) -> np.ndarray:
    """Encode one flow (float32, pixels) as uint8 (S, S, 2) or, with its magnitude, (S, S, 3).

    Args:
        flow_SS2: x and y in pixels.
        bound: flow in pixels that maps to the ends of the range; larger flow is clipped.
        magnitude: add the magnitude as a third channel.
    """
    # A mean for each axis is ten times as fast as `mean(axis=(0, 1))`.
    camera_2 = np.array([flow_SS2[..., axis].mean(dtype=np.float64) for axis in (0, 1)], np.float32)
    motion_SS2 = flow_SS2 - camera_2
    encoded_SSC = np.empty((*flow_SS2.shape[:2], 3 if magnitude else 2), np.uint8)
    if magnitude:
        magnitude_SS = np.sqrt(motion_SS2[..., 0] ** 2 + motion_SS2[..., 1] ** 2)
        encoded_SSC[..., 2] = np.rint(np.minimum(magnitude_SS, bound) * (HALF_RANGE / bound)) + CENTRE
    motion_SS2 *= HALF_RANGE / bound
    np.clip(motion_SS2, -HALF_RANGE, HALF_RANGE, out=motion_SS2)
    encoded_SSC[..., :2] = np.rint(motion_SS2, out=motion_SS2) + CENTRE
    return encoded_SSC


def mirror(flows: Tensor) -> Tensor:
    """Mirror encoded flows (uint8, ... x C x S x S, x first) left to right, exactly: pixels change places, and x its sign."""
    mirrored = flows.flip(-1)
    mirrored[..., 0, :, :] = 2 * CENTRE - mirrored[..., 0, :, :].int()
    return mirrored
