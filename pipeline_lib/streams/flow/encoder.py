"""Turn the frames of a video into images of optical flow.

Frames are resized to squares of the backbone's `image_size` before flow is computed. Flow is therefore in pixels at that size,
independent of the video's resolution and aspect ratio. Frame t shows the flows t to t + L - 1, where flow t is the motion from
frame t of the video to the next one. The last flow is repeated at the end, and the flow of a single frame is zero.

Shape suffixes: N frames, H W pixels of a decoded frame, S side in pixels, C channels, L flows of a stack.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from pipeline_lib.params.stages import StreamParams
from pipeline_lib.streams.flow.encoding import encode_flow
from pipeline_lib.streams.flow.methods import METHODS
from pipeline_lib.streams.flow.opencv import import_opencv, single_threaded

BATCH_FLOWS = 16
"""Flows computed at a time. Fixed, so that a method on a GPU sees the same batches however a video is split into arrays."""


class FlowEncoder:
    """Optical flow of videos as uint8 images: x, y and magnitude of one flow, or the stacked x and y of several.

    It may be used by several threads, each with a video of its own.
    """

    def __init__(self, params: StreamParams, device: torch.device) -> None:
        """Load the method.

        Raises:
            UserError: OpenCV or the method's weights are not available.
        """
        self.params = params
        self._cv2 = import_opencv()
        self._method = METHODS[params.method](params, device)
        self._has_magnitude = params.flow_encoding == "image"

    def encode(self, arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the flow images of a video's frames in order (uint8 NSSC, up to 16 at a time).

        The channels are x, y and magnitude, or those of the stacked flows in order: x, y, x, y, ...
        Memory is bounded for videos of any length.

        Args:
            arrays: all frames of one video in order, in arrays of any lengths (uint8 RGB, NHWC).
        """
        images = self._stack(self.encode_single(arrays))
        while batch := list(itertools.islice(images, BATCH_FLOWS)):
            yield np.stack(batch)

    def encode_single(self, arrays: Iterable[np.ndarray], *, side: int | None = None) -> Iterator[np.ndarray]:
        """Yield one encoded flow (uint8; x, y and for `encoding: image` magnitude) for each frame, the last one repeated.

        Args:
            arrays: as for `encode`.
            side: scale the encoded flows down to this side; their values stay pixels at `image_size`.
        """
        frames = itertools.chain.from_iterable(arrays)
        if (first_HWC := next(frames, None)) is None:
            return
        flow_SSC = None
        for flow_SSC in self._flows(first_HWC, frames, side or self.params.image_size):
            yield flow_SSC
        yield self._still(side or self.params.image_size) if flow_SSC is None else flow_SSC

    def _still(self, side: int) -> np.ndarray:
        return encode_flow(np.zeros((side, side, 2), np.float32), self.params.bound, magnitude=self._has_magnitude)

    def _flows(self, first_HWC: np.ndarray, frames: Iterator[np.ndarray], side: int) -> Iterator[np.ndarray]:
        """Yield the encoded flow from each frame to the next."""
        flows_of = self._method.start()
        images = [self._prepare(first_HWC)]
        while batch := list(itertools.islice(frames, BATCH_FLOWS)):
            with single_threaded(self._cv2):
                images += map(self._prepare, batch)
                encoded = [self._encode(flow_SS2, side) for flow_SS2 in flows_of(np.stack(images))]
            yield from encoded
            images = images[-1:]

    def _prepare(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return a frame as a square, grey or RGB as the method wants it."""
        pixels = self._cv2.cvtColor(frame_HWC, self._cv2.COLOR_RGB2GRAY) if self._method.is_grey else frame_HWC
        return self._resize(pixels, self.params.image_size)

    def _encode(self, flow_SS2: np.ndarray, side: int) -> np.ndarray:
        flow_SSC = encode_flow(flow_SS2, self.params.bound, magnitude=self._has_magnitude)
        return flow_SSC if side == self.params.image_size else self._resize(flow_SSC, side)

    def _resize(self, pixels: np.ndarray, side: int) -> np.ndarray:
        """Resize to a square; where it shrinks, average the pixels."""
        resized: np.ndarray = self._cv2.resize(pixels, (side, side), interpolation=self._cv2.INTER_AREA)
        return resized

    def _stack(self, flows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield for each flow the image of it and the following ones; the last flow is repeated."""
        window: deque[np.ndarray] = deque(maxlen=self.params.stack)
        for flow_SSC in _repeat_last(flows, self.params.stack - 1):
            window.append(flow_SSC)
            if len(window) == self.params.stack:
                yield flow_SSC if self._has_magnitude else stack_flows(window)


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
