"""DIS (Kroeger et al. 2016), by OpenCV, with the preset `fast`; see docs/performance.md for the others."""

from __future__ import annotations

from pipeline_lib.streams.flow.method import DecoderMethod, FlowMethod
from pipeline_lib.streams.flow.opencv import PairFunction, import_opencv, of_pairs


def _open() -> FlowMethod:
    cv2 = import_opencv()

    def start() -> PairFunction:
        algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        return lambda first_SS, second_SS: algorithm.calc(first_SS, second_SS, None)

    return of_pairs(start)


METHOD = DecoderMethod(_open)
