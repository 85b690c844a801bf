"""Farneback's method (2003), by OpenCV."""

from __future__ import annotations

from pipeline_lib.streams.flow.method import DecoderMethod, FlowMethod
from pipeline_lib.streams.flow.opencv import import_opencv, of_pairs

FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
"""The values of OpenCV's documentation."""


def _open() -> FlowMethod:
    cv2 = import_opencv()
    return of_pairs(lambda: lambda first_SS, second_SS: cv2.calcOpticalFlowFarneback(first_SS, second_SS, None, **FARNEBACK))


METHOD = DecoderMethod(_open)
