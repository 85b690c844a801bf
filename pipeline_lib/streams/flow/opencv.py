"""What OpenCV's optical flow methods share: they take pairs of grey images.

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

PairFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns flow_SS2 from one grey image to the next."""


def of_pairs(start: Callable[[], PairFunction]) -> FlowMethod:
    """Return the method that applies a function to each pair; OpenCV's objects keep buffers, so each thread has its own."""

    def start_all() -> FlowFunction:
        flow_of_pair = start()
        return lambda images: itertools.starmap(flow_of_pair, itertools.pairwise(images))

    return FlowMethod(start_all, is_grey=True)


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
