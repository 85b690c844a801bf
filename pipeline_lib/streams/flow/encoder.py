"""Turn the frames of a video into images of optical flow.

Frames are resized to squares of the backbone's `image_size` before flow is computed, and reduced further if the method needs no
more. Flow is in pixels at `image_size`, independent of the video's resolution and aspect ratio.

Frame t shows the flows t to t + L - 1, where flow t is the motion from frame t of the video to the next one. The last flow is
repeated at the end, and the flow of a single frame is zero.

Shape suffixes: N images, H W pixels of a decoded frame, S side in pixels of a flow or an image, C channels, L flows of a stack.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_lib.streams.flow.encoding import encode_flow
from pipeline_lib.streams.flow.method import DecoderMethod, FlowMethod, find_method
from pipeline_lib.streams.flow.opencv import import_opencv, single_threaded

BATCH_FLOWS = 16
"""Flows computed at a time. Fixed, so that a method on a GPU sees the same batches however a video is split into arrays."""


@dataclass(frozen=True)
class FlowSpec:
    """Which flow images to make."""

    method: str
    side: int
    """Side in pixels of the frames in whose pixels flow is measured."""
    computed_side: int
    """Side in pixels of the frames that flow is computed of."""
    bound: float
    """Flow in pixels that maps to the ends of the range."""
    has_magnitude: bool
    """Whether the magnitude is the third channel."""
    stack: int
    """Flows of an image, if it has no magnitude."""
    kept_side: int
    """Encoded flows are scaled down to this side."""


def flow_images(frames: Iterator[np.ndarray], *spec: Any) -> Iterator[np.ndarray]:
    """Yield the flow images (uint8 SSC) of frames; runs in a decoder process, with a method that such processes compute.

    Args:
        frames: all frames of one video in order (uint8 RGB, HWC).
        spec: the values of a `FlowSpec`.
    """
    flow_spec = FlowSpec(*spec)
    method = find_method(flow_spec.method)
    assert isinstance(method, DecoderMethod)
    return FlowEncoder(flow_spec, method.open()).encode(frames)


class FlowEncoder:
    """Optical flow of videos as uint8 images: x, y and magnitude of one flow, or the stacked x and y of several.

    It may be used by several threads, each with a video of its own.
    """

    def __init__(self, spec: FlowSpec, method: FlowMethod) -> None:
        self.spec = spec
        self._cv2 = import_opencv()
        self._method = method

    def encode_arrays(self, arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the flow images of all frames of a video (uint8 RGB, NHWC) as arrays of several (uint8 NSSC)."""
        images = self.encode(itertools.chain.from_iterable(arrays))
        while batch := list(itertools.islice(images, BATCH_FLOWS)):
            yield np.stack(batch)

    def encode(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the flow image (uint8 SSC) of each frame of a video (uint8 RGB, HWC), in order.

        The channels are x, y and magnitude, or those of the stacked flows in order: x, y, x, y, ...
        Memory is bounded for videos of any length.
        """
        window: deque[np.ndarray] = deque(maxlen=self.spec.stack)
        for flow_SSC in _repeat_last(self._single(frames), self.spec.stack - 1):
            window.append(flow_SSC)
            if len(window) == self.spec.stack:
                yield flow_SSC if self.spec.stack == 1 else stack_flows(window)

    def _single(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield one encoded flow for each frame, the last one repeated."""
        if (first_HWC := next(frames, None)) is None:
            return
        flow_SSC = None
        for flow_SSC in self._flows(first_HWC, frames):
            yield flow_SSC
        yield self._still() if flow_SSC is None else flow_SSC

    def _still(self) -> np.ndarray:
        return self._encode(np.zeros((self.spec.computed_side, self.spec.computed_side, 2), np.float32))

    def _flows(self, first_HWC: np.ndarray, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the encoded flow from each frame to the next."""
        flows_of = self._method.start()
        images = [self._prepare(first_HWC)]
        while batch := list(itertools.islice(frames, BATCH_FLOWS)):
            with single_threaded(self._cv2):
                images += map(self._prepare, batch)
                encoded = list(map(self._encode, flows_of(images)))
            yield from encoded
            images = images[-1:]

    def _prepare(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return a frame as a square of the side that the method takes, grey or RGB as it wants it.

        A side that shrinks to half or less is averaged. Above that, bilinear interpolation is several times as fast, and still
        leaves out no pixel. Two steps take half the time of averaging over parts of pixels.
        """
        pixels = self._cv2.cvtColor(frame_HWC, self._cv2.COLOR_RGB2GRAY) if self._method.is_grey else frame_HWC
        shrinks_much = max(pixels.shape[:2]) >= 2 * self.spec.side
        interpolation = self._cv2.INTER_AREA if shrinks_much else self._cv2.INTER_LINEAR
        image: np.ndarray = self._cv2.resize(pixels, (self.spec.side,) * 2, interpolation=interpolation)
        if self.spec.computed_side < self.spec.side:
            image = self._cv2.resize(image, (self.spec.computed_side,) * 2, interpolation=self._cv2.INTER_AREA)
        return image

    def _encode(self, flow_SS2: np.ndarray) -> np.ndarray:
        bound = self.spec.bound * self.spec.computed_side / self.spec.side
        flow_SSC = encode_flow(flow_SS2, bound, magnitude=self.spec.has_magnitude)
        if self.spec.kept_side < self.spec.computed_side:
            flow_SSC = self._cv2.resize(flow_SSC, (self.spec.kept_side,) * 2, interpolation=self._cv2.INTER_AREA)
        return flow_SSC


def stack_flows(flows: Iterable[np.ndarray]) -> np.ndarray:
    """Return encoded flows (uint8 SS2) as one image with the channels x, y, x, y, ..."""
    # Copying x and y as one 16-bit number is several times as fast as `np.concatenate`.
    return np.stack([flow_SS2.view(np.uint16)[..., 0] for flow_SS2 in flows], axis=-1).view(np.uint8)


def _repeat_last(items: Iterable[np.ndarray], times: int) -> Iterator[np.ndarray]:
    last = None
    for last in items:
        yield last
    if last is not None:
        yield from itertools.repeat(last, times)
