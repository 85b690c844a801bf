"""OpenCV's optical flow methods on grey images: DIS, Farneback and TV-L1.

Shape suffix: S side in pixels.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline_lib.errors import UserError
from pipeline_lib.streams.flow.method import FlowFunction, FlowMethod

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

PairFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns flow_SS2 from one grey image to the next."""


def dis() -> FlowMethod:
    """Return DIS (Kroeger et al. 2016) with the preset `fast`; see docs/performance.md for the others."""
    cv2 = import_opencv()

    def start() -> PairFunction:
        algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        return lambda first_SS, second_SS: algorithm.calc(first_SS, second_SS, None)

    return _of_pairs(start)


def farneback() -> FlowMethod:
    """Return Farneback's method (2003)."""
    cv2 = import_opencv()
    return _of_pairs(lambda: lambda first_SS, second_SS: cv2.calcOpticalFlowFarneback(first_SS, second_SS, None, **FARNEBACK))


def tvl1() -> FlowMethod:
    """Return TV-L1 (Zach et al. 2007).

    Raises:
        UserError: OpenCV was built without its contrib modules.
    """
    cv2 = import_opencv()
    if not hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create"):
        raise UserError(
            "features.method = tvl1: OpenCV's contrib modules are missing; run `pip install opencv-contrib-python-headless`"
        )

    def start() -> PairFunction:
        algorithm = cv2.optflow.DualTVL1OpticalFlow_create()
        return lambda first_SS, second_SS: algorithm.calc(first_SS, second_SS, None)

    return _of_pairs(start)


def _of_pairs(start: Callable[[], PairFunction]) -> FlowMethod:
    """Return the method that applies a function to each pair; OpenCV's objects keep buffers, so each thread has its own."""

    def start_all() -> FlowFunction:
        flow_of_pair = start()
        return lambda images: itertools.starmap(flow_of_pair, itertools.pairwise(images))

    return FlowMethod(start_all, is_grey=True)


METHODS: dict[str, Callable[[], FlowMethod]] = {"dis": dis, "farneback": farneback, "tvl1": tvl1}
"""By their names in `StreamParams.method`."""


def import_opencv() -> Any:
    """Import OpenCV on first use, because only streams of flow need it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"features.input = flow: OpenCV cannot be imported ({error}); run `pip install opencv-contrib-python-headless`"
        ) from None
    return cv2


_lock = threading.Lock()
_num_inside, _threads_before = 0, 0


@contextmanager
def single_threaded(cv2: Any) -> Iterator[None]:
    """Make OpenCV use one thread in the block, and restore its number of threads when the last concurrent block ends.

    The number is global to the process. Videos are encoded in parallel, so threads within OpenCV would only compete for the
    cores; other users of OpenCV in the process keep theirs.
    """
    global _num_inside, _threads_before
    with _lock:
        if _num_inside == 0:
            _threads_before = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                cv2.setNumThreads(_threads_before)
