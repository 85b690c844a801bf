"""TV-L1 (Zach et al. 2007), by OpenCV's contrib modules."""

from __future__ import annotations

from pipeline_lib.errors import UserError
from pipeline_lib.streams.flow.method import DecoderMethod, FlowMethod
from pipeline_lib.streams.flow.opencv import PairFunction, import_opencv, of_pairs


def _open() -> FlowMethod:
    cv2 = import_opencv()
    if not hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create"):
        raise UserError(
            "features.method = tvl1: OpenCV's contrib modules are missing; run `pip install opencv-contrib-python-headless`"
        )

    def start() -> PairFunction:
        algorithm = cv2.optflow.DualTVL1OpticalFlow_create()
        return lambda first_SS, second_SS: algorithm.calc(first_SS, second_SS, None)

    return of_pairs(start)


METHOD = DecoderMethod(_open)
