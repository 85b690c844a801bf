"""Encode optical flow as uint8 images that a network pretrained on photographs can take.

x and y: the field's mean vector (the camera's motion) is subtracted, then [-bound, bound] is mapped to [1, 255]. Zero is 128,
exactly in the middle, so that `256 - x` mirrors a field exactly.

Magnitude: [0, bound] is mapped to [128, 255]. A still area is therefore grey, 128 in all channels, which normalisation turns
into almost zero. Convolutions pad with zero, so that such an area has no edge at the image's border. For a frozen ImageNet
network this is better than [0, 255], with which still areas have a strong colour (see docs/performance.md).

Shape suffixes: C channels, S side in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline_lib.streams.flow.opencv import import_opencv

if TYPE_CHECKING:
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
    cv2 = import_opencv()
    camera_x, camera_y, *_ = cv2.mean(flow_SS2)
    if not magnitude:
        motion_SS2 = cv2.subtract(flow_SS2, (camera_x, camera_y, 0, 0))
        return _to_bytes(motion_SS2.reshape(len(motion_SS2), -1), bound).reshape(motion_SS2.shape)
    # Planes one after the other are faster than interleaved channels.
    planes_CSS = np.empty((3, *flow_SS2.shape[:2]), np.float32)
    cv2.split(flow_SS2, list(planes_CSS[:2]))
    planes_CSS[0] -= np.float32(camera_x)
    planes_CSS[1] -= np.float32(camera_y)
    cv2.magnitude(planes_CSS[0], planes_CSS[1], planes_CSS[2])
    bytes_CSS = _to_bytes(planes_CSS.reshape(len(planes_CSS), -1), bound).reshape(planes_CSS.shape)
    encoded_SSC: np.ndarray = cv2.merge(list(bytes_CSS))
    return encoded_SSC


def _to_bytes(values: np.ndarray, bound: float) -> np.ndarray:
    """Map [-bound, bound] to [1, 255] and clip (float32 matrix, overwritten)."""
    cv2 = import_opencv()
    values *= np.float32(HALF_RANGE / bound)
    cv2.max(values, -HALF_RANGE, values)
    np.rint(values, out=values)  # before the centre is added: sums of floats would be rounded differently above and below it
    encoded: np.ndarray = cv2.convertScaleAbs(values, alpha=1, beta=CENTRE)
    return encoded


def mirror(flows: Tensor) -> Tensor:
    """Mirror encoded flows (uint8, ... x C x S x S, x first) left to right, exactly: pixels change places, and x its sign."""
    mirrored = flows.flip(-1)
    mirrored[..., 0, :, :] = 2 * CENTRE - mirrored[..., 0, :, :].int()
    return mirrored
