"""DIS (Kroeger et al. 2016), by OpenCV, with the preset `fast`; see docs/performance.md for the others.

The preset computes flow at a quarter of the image's side and enlarges it. Here the image is reduced first, and flow stays at
that size: the same flow in less time, and a sixteenth of the bytes to encode and send.
"""

from __future__ import annotations

from pipeline_lib.streams.flow.method import DecoderMethod, FlowMethod
from pipeline_lib.streams.flow.opencv import PairFunction, import_opencv, of_pairs

MIN_SIDE = 56
"""Pixels; of smaller images, too few scales would be left to find large motion."""


def _open() -> FlowMethod:
    cv2 = import_opencv()

    def start() -> PairFunction:
        algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        algorithm.setFinestScale(0)
        return lambda first_SS, second_SS: algorithm.calc(first_SS, second_SS, None)

    return of_pairs(start)


METHOD = DecoderMethod(_open, side_of=lambda side: min(side, max(MIN_SIDE, -(-side // 4))))
