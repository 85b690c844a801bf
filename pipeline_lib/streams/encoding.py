"""Encode images of any size into features on a device: decoded frames, images of optical flow, or the frames of clips.

Shape suffixes: N images or steps, B clips, F frames of a clip, S steps, H W pixels, C channels (3 of colour, or those of flow),
K grid side, D feature channels.
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
from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

GPU_BATCH, MAX_CPU_BATCH = 256, 64
"""Images per batch."""
CPU_BATCH_PIXELS = 6 * 224**2
"""Pixels per batch on a CPU; feature maps of larger batches do not fit its cache."""

UNSCALED_SIDE = 640
"""Pixels. Frames up to this width and height are decoded at their stored size."""


class DeviceEvent:
    """A point on a device's timeline: a CUDA event, or the current time on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event:
            self._event.record()

    def wait(self) -> None:
        """Block until the device has reached this event."""
        if self._event:
            self._event.synchronize()

    def since(self, earlier: DeviceEvent) -> float:
        """Wait for this event and return the seconds since an earlier one."""
        self.wait()
        if self._event and earlier._event:
            return earlier._event.elapsed_time(self._event) / 1000
        return self._time - earlier._time


@dataclass(frozen=True)
class PendingFeatures:
    """Features of a batch that the device is still computing or copying to the host."""

    features_NKKD: Tensor
    is_finite: Tensor
    backbone: str
    start: DeviceEvent
    end: DeviceEvent
    arrays: Sequence[np.ndarray]
    """The images, kept alive because the device may still be reading them."""

    @property
    def seconds(self) -> float:
        """Wait for the batch and return the seconds that it took on the device."""
        return self.end.since(self.start)

    def wait(self) -> np.ndarray:
        """Wait for the batch and return features_NKKD (float16).

        Raises:
            UserError: a feature is not finite in fp16.
        """
        self.end.wait()
        if not self.is_finite:
            raise UserError(
                f"features.weights: {self.backbone} computes features that overflow fp16; set `features.precision: bf16`, "
                "or use other weights if they overflow with that too"
            )
        return self.features_NKKD.numpy()


class Encoder:
    """A backbone on a device: uint8 images in, fp16 features out; halves batches that do not fit its memory."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_size: int,
        batch_frames: int,
        device: torch.device,
        precision: torch.dtype,
        clip_frames: int = 1,
    ) -> None:
        """Prepare to encode images, or with `clip_frames` clips of so many frames, in batches of about `batch_frames`."""
        self.backbone = backbone.to(device).channels_last()
        self.network = fuse(self.backbone, precision) if device.type == "cuda" else self.backbone
        self.image_size = image_size
        self.clip_frames = clip_frames
        self.batch_frames = self._whole_clips(batch_frames)
        self.device = device
        self.precision = precision
        self._launch_lock = threading.Lock()  # the kernels of concurrent shards must not interleave within a batch
        self._upload_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def encode(self, arrays: Sequence[np.ndarray]) -> list[PendingFeatures]:
        """Start to encode images (uint8 arrays, N x H x W x C), or the frames of whole clips one after the other.

        Returns:
            the features of all images, or of all clips' steps, in one batch or, if that exceeds `batch_frames`, several.

        Raises:
            torch.OutOfMemoryError: a single image or clip does not fit the GPU.
        """
        num_frames = sum(map(len, arrays))
        if num_frames > self.batch_frames:
            return self._encode_halves(arrays, self._whole_clips(num_frames // 2))
        try:
            return [self._encode_batch(arrays)]
        except torch.OutOfMemoryError:
            if num_frames == self.clip_frames:
                raise
        self.batch_frames = self._whole_clips((num_frames + self.clip_frames) // 2)
        logger.warning("out of GPU memory: batch size halved to %d frames", self.batch_frames)
        torch.cuda.empty_cache()
        return self._encode_halves(arrays, self._whole_clips(num_frames // 2))

    def _whole_clips(self, num_frames: int) -> int:
        """Round down to whole clips, at least one."""
        return max(1, num_frames // self.clip_frames) * self.clip_frames

    def _encode_halves(self, arrays: Sequence[np.ndarray], size: int) -> list[PendingFeatures]:
        features: list[PendingFeatures] = []
        for half in batches(arrays, size):
            features += self.encode(half)
        return features

    @torch.inference_mode()
    def _encode_batch(self, arrays: Sequence[np.ndarray]) -> PendingFeatures:
        with deterministic_inference(self.device), self._launch_lock, self._current_device():
            start = DeviceEvent(self.device)
            pixels_NCHW = resize(self._upload(arrays), self.image_size)
            images_NCHW = normalise(pixels_NCHW, self.backbone)
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                features_NKKD = self._compute(images_NCHW)
            features_NKKD = features_NKKD.to(torch.float16, memory_format=torch.contiguous_format)
            on_host, is_finite = _to_host(features_NKKD), _to_host(features_NKKD.isfinite().all())
            return PendingFeatures(on_host, is_finite, self.backbone.name, start, DeviceEvent(self.device), arrays)

    def _compute(self, images_NCHW: Tensor) -> Tensor:
        if self.backbone.input == "image":
            return self.network(images_NCHW)
        clips_BFCHW = images_NCHW.unflatten(0, (-1, self.clip_frames))
        features_BSKKD = self.network(clips_BFCHW.transpose(1, 2))
        return features_BSKKD.flatten(0, 1)

    def _current_device(self) -> AbstractContextManager[Any]:
        """Make this encoder's device CUDA's current one within the block."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Return the images on the device; the copy to a GPU overlaps the previous batch's computation."""
        if self._upload_stream is None:
            return [torch.from_numpy(frames_NHWC) for frames_NHWC in arrays]
        with torch.cuda.stream(self._upload_stream):
            pixels = [torch.from_numpy(frames_NHWC).to(self.device, non_blocking=True) for frames_NHWC in arrays]
        compute_stream = torch.cuda.current_stream()
        compute_stream.wait_stream(self._upload_stream)
        for pixels_NHWC in pixels:
            pixels_NHWC.record_stream(compute_stream)
        return pixels


class Batches:
    """Regroups arrays (N x ...) into lists of `size` elements in total, splitting arrays as needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._batch: list[np.ndarray] = []
        self._missing = size

    def add(self, array: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Add an array; yields the lists that it completes."""
        while len(array) >= self._missing:
            full = [*self._batch, array[: self._missing]]
            array = array[self._missing :]
            self._batch, self._missing = [], self._size
            yield full
        if len(array):
            self._batch.append(array)
            self._missing -= len(array)

    def rest(self) -> Iterator[list[np.ndarray]]:
        """Yield the smaller list that is left at the end, if there is one."""
        if self._batch:
            yield self._batch


def batches(arrays: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Regroup arrays (N x ...) into lists of `size` elements in total, splitting arrays as needed; the last may be smaller."""
    regrouped = Batches(size)
    for array in arrays:
        yield from regrouped.add(array)
    yield from regrouped.rest()


def pinned_array(shape: tuple[int, ...]) -> np.ndarray:
    """Return an uninitialised uint8 array in pinned memory, for asynchronous copies to a GPU; PyTorch reuses the memory."""
    pixels: np.ndarray = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return pixels


def default_batch(device: torch.device, image_size: int) -> int:
    """Return the default batch size in images."""
    if device.type == "cuda":
        return GPU_BATCH
    return min(MAX_CPU_BATCH, max(2, CPU_BATCH_PIXELS // image_size**2))


def decoded_side(image_size: int) -> int:
    """Return the maximum width and height in pixels of decoded frames; the decoder scales larger ones down.

    It is at least twice `image_size`, so that the antialiased resize to `image_size` still determines the result.
    """
    return max(UNSCALED_SIDE, 2 * image_size)


def resize(pixels: Sequence[Tensor], image_size: int) -> Tensor:
    """Resize images (uint8 tensors, N x H x W x C) to squares and join them (uint8 NCHW, channels last in memory)."""
    resized = [_resize_batch(pixels_NHWC.permute(0, 3, 1, 2), image_size) for pixels_NHWC in pixels]
    return torch.cat(resized).contiguous(memory_format=torch.channels_last)


def _to_host(tensor: Tensor) -> Tensor:
    """Start to copy a tensor to the host."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _resize_batch(pixels_NCHW: Tensor, image_size: int) -> Tensor:
    if pixels_NCHW.shape[2:] == (image_size, image_size):
        return pixels_NCHW
    # PyTorch interpolates uint8 on the CPU only, where it is much faster than float.
    on_gpu = pixels_NCHW.device.type == "cuda"
    pixels_NCHW = pixels_NCHW.float() if on_gpu else pixels_NCHW
    size = (image_size, image_size)
    resized_NCHW = torch.nn.functional.interpolate(pixels_NCHW, size, mode="bilinear", antialias=True)
    return resized_NCHW.round_().clamp_(0, 255).to(torch.uint8) if on_gpu else resized_NCHW


def normalise(pixels_NCHW: Tensor, backbone: Backbone) -> Tensor:
    """Normalise uint8 pixels with the mean and standard deviation that the backbone was trained with (fp32)."""
    mean_C11, std_C11 = (
        torch.tensor(values, device=pixels_NCHW.device).mul(255).view(-1, 1, 1) for values in backbone.preprocessing
    )
    return pixels_NCHW.float().sub_(mean_C11).div_(std_C11)
