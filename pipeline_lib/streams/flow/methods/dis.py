"""DIS (Kroeger et al. 2016), by OpenCV: the preset `fast` with fewer patches and fewer refinements.

The preset computes flow at a quarter of the image's side and enlarges it. Here the image is reduced first, and flow stays at
that size, with a sixteenth of the pixels to encode and send. Fewer patches and refinements take a third less time. See
docs/performance.md for errors and times of this and of OpenCV's presets.
"""

from __future__ import annotations

from pipeline_lib.streams.flow.method import DecoderMethod, FlowMethod
from pipeline_lib.streams.flow.opencv import PairFunction, import_opencv, of_pairs

MIN_SIDE = 56
"""Pixels; of smaller images, too few scales would be left to find large motion."""

PATCH_STRIDE, REFINEMENTS = 5, 3
"""The preset has 4 and 5."""


def _open() -> FlowMethod:
    cv2 = import_opencv()

    def start() -> PairFunction:
        algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        algorithm.setFinestScale(0)
        algorithm.setPatchStride(PATCH_STRIDE)
        algorithm.setVariationalRefinementIterations(REFINEMENTS)
        return lambda first_SS, second_SS: algorithm.calc(first_SS, second_SS, None)

    return of_pairs(start)


METHOD = DecoderMethod(_open, side_of=lambda side: min(side, max(MIN_SIDE, -(-side // 4))))
