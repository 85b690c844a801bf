"""Turns decoded frames of any size into features on a device.

Shape suffixes: N frames, H W pixels, C colour channels (3), K grid side, D feature channels.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.backbones.build import Backbone
from pipeline_lib.backbones.fusing import fuse
from pipeline_lib.compute.gpu import deterministic_inference
from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

GPU_BATCH, LARGEST_CPU_BATCH = 256, 64
"""Frames."""
CPU_BATCH_PIXELS = 6 * 224**2
"""Pixels of a batch's frames on a CPU: the maps of larger batches outgrow its cache, and VGG16's fill a gigabyte."""

UNSCALED_SIDE = 640
"""Pixels: frames within it come as they are stored, however small the network's input."""


class Moment:
    """When a device gets to a point in the work handed to it, which on a CPU is at once."""

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event:
            self._event.record()

    def wait(self) -> None:
        """Wait for it."""
        if self._event:
            self._event.synchronize()

    def since(self, earlier: Moment) -> float:
        """Return the seconds from an earlier moment, waiting for this one."""
        self.wait()
        if self._event and earlier._event:
            return earlier._event.elapsed_time(self._event) / 1000
        return self._time - earlier._time


@dataclass(frozen=True)
class Encoded:
    """Features of a batch, on their way from the device."""

    features_NKKD: Tensor
    is_finite: Tensor
    backbone: str
    began: Moment
    ended: Moment
    arrays: Sequence[np.ndarray]
    """The frames: the device may still read them."""

    @property
    def seconds(self) -> float:
        """How long the device worked on them; waits until it has done so."""
        return self.ended.since(self.began)

    def wait(self) -> np.ndarray:
        """Return features_NKKD (float16) once they are there.

        Raises:
            UserError: they are not finite in fp16.
        """
        self.ended.wait()
        if not self.is_finite:
            raise UserError(
                f"features.weights: {self.backbone} gives features beyond fp16; if `features.precision: bf16` does too, "
                "these weights do not fit"
            )
        return self.features_NKKD.numpy()


class FrameEncoder:
    """A backbone on a device: uint8 frames in, fp16 features out. Batches that do not fit are halved."""

    def __init__(
        self, backbone: Backbone, *, image_size: int, batch_frames: int, device: torch.device, precision: torch.dtype
    ) -> None:
        self.backbone = backbone.to(device).to(memory_format=torch.channels_last)
        self.network = fuse(self.backbone, precision) if device.type == "cuda" else self.backbone
        self.image_size = image_size
        self.batch_frames = batch_frames
        self.device = device
        self.precision = precision
        self.preprocessing = self._describe()
        """What is done to a frame before the network and to its map after, as JSON types."""
        self._launching = threading.Lock()  # so that shards under way together do not tear each other's batches apart
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None

    def encode(self, arrays: Sequence[np.ndarray]) -> list[Encoded]:
        """Begin to turn arrays of frames (uint8 RGB, N x H x W x 3) into features: of all frames, in one part or several.

        Raises:
            torch.OutOfMemoryError: a single frame does not fit the GPU.
        """
        num_frames = sum(map(len, arrays))
        if num_frames > self.batch_frames:
            return self._encode_halves(arrays, num_frames // 2)
        try:
            return [self._encode_batch(arrays)]
        except torch.OutOfMemoryError:
            if num_frames == 1:
                raise
        self.batch_frames = (num_frames + 1) // 2
        logger.warning("GPU memory: batches halved to %d frames", self.batch_frames)
        torch.cuda.empty_cache()
        return self._encode_halves(arrays, num_frames // 2)

    def _encode_halves(self, arrays: Sequence[np.ndarray], size: int) -> list[Encoded]:
        encoded: list[Encoded] = []
        for half in batches(arrays, size):
            encoded += self.encode(half)
        return encoded

    @torch.inference_mode()
    def _encode_batch(self, arrays: Sequence[np.ndarray]) -> Encoded:
        with deterministic_inference(self.device), self._launching, self._chosen():
            began = Moment(self.device)
            pixels_NCHW = resize(self._upload(arrays), self.image_size)
            frames_NCHW = normalise(pixels_NCHW, self.backbone)
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                features_NKKD = self.network(frames_NCHW)
            features_NKKD = features_NKKD.to(torch.float16, memory_format=torch.contiguous_format)
            on_host, is_finite = _to_host(features_NKKD), _to_host(features_NKKD.isfinite().all())
            return Encoded(on_host, is_finite, self.backbone.name, began, Moment(self.device), arrays)

    def _chosen(self) -> AbstractContextManager[Any]:
        """Make the device the one that CUDA's calls are about."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Return the frames on the device; a GPU copies them while it still computes the last batch."""
        if self._uploads is None:
            return [torch.from_numpy(frames_NHWC) for frames_NHWC in arrays]
        with torch.cuda.stream(self._uploads):
            pixels = [torch.from_numpy(frames_NHWC).to(self.device, non_blocking=True) for frames_NHWC in arrays]
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._uploads)
        for pixels_NHWC in pixels:
            pixels_NHWC.record_stream(computing)
        return pixels

    def _describe(self) -> dict[str, Any]:
        channels, height, width = self.backbone.map_shape(self.image_size)
        return {
            "colour": "RGB",
            "image_size": self.image_size,
            "resize": "bilinear, antialiased, aspect ratio not kept, rounded to uint8",
            "mean": list(self.backbone.preprocessing.mean),
            "std": list(self.backbone.preprocessing.std),
            "map": [height, width, channels],
            "grid": self.backbone.grid,
            "pooling": "none" if (height, width) == (self.backbone.grid,) * 2 else "adaptive average",
        }


def batches(arrays: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Yield the arrays (N x ...) in lists of `size` elements in all, cut where need be; the last list is what is left over."""
    batch: list[np.ndarray] = []
    missing = size
    for array in arrays:
        rest = array
        while len(rest) >= missing:
            yield [*batch, rest[:missing]]
            batch, rest, missing = [], rest[missing:], size
        if len(rest):
            batch.append(rest)
            missing -= len(rest)
    if batch:
        yield batch


def pinned_array(shape: tuple[int, ...]) -> np.ndarray:
    """Return a uint8 array of any content in memory that a GPU reads while the processor goes on; PyTorch uses it again."""
    pixels: np.ndarray = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return pixels


def default_batch(device: torch.device, image_size: int) -> int:
    """Return how many frames to encode at once."""
    if device.type == "cuda":
        return GPU_BATCH
    return min(LARGEST_CPU_BATCH, max(2, CPU_BATCH_PIXELS // image_size**2))


def decoded_side(image_size: int) -> int:
    """Return the width and height in pixels beyond which frames are scaled down while they are decoded.

    What is left is still resized to `image_size`, with antialiasing, from at least twice that size.
    """
    return max(UNSCALED_SIDE, 2 * image_size)


def resize(pixels: Sequence[Tensor], image_size: int) -> Tensor:
    """Resize frames (uint8, each tensor N x H x W x 3) to squares: all in one, uint8 NCHW, channels last in memory."""
    resized = [_resize_batch(pixels_NHWC.permute(0, 3, 1, 2), image_size) for pixels_NHWC in pixels]
    return torch.cat(resized).contiguous(memory_format=torch.channels_last)


def _to_host(tensor: Tensor) -> Tensor:
    """Begin to copy a tensor to the host."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _resize_batch(pixels_NCHW: Tensor, image_size: int) -> Tensor:
    # PyTorch interpolates uint8 on the CPU only (twelve times faster there than float, and within one level of it).
    on_gpu = pixels_NCHW.device.type == "cuda"
    pixels_NCHW = pixels_NCHW.float() if on_gpu else pixels_NCHW
    size = (image_size, image_size)
    resized_NCHW = torch.nn.functional.interpolate(pixels_NCHW, size, mode="bilinear", antialias=True)
    return resized_NCHW.round_().clamp_(0, 255).to(torch.uint8) if on_gpu else resized_NCHW


def normalise(pixels_NCHW: Tensor, backbone: Backbone) -> Tensor:
    """Turn uint8 pixels into what the backbone was trained on."""
    mean_C11, std_C11 = (
        torch.tensor(values, device=pixels_NCHW.device).mul(255).view(3, 1, 1) for values in backbone.preprocessing
    )
    return pixels_NCHW.float().sub_(mean_C11).div_(std_C11)
