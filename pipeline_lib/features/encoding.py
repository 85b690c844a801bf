"""Turns decoded frames of any size into features on a device.

Shape suffixes: N frames, H W pixels, C colour channels (3), K grid side, D feature channels.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.models.backbones import Backbone

logger = logging.getLogger(__name__)


class FrameEncoder:
    """A backbone on a device: uint8 frames in, fp16 features out. Batches that do not fit are halved."""

    def __init__(
        self, backbone: Backbone, *, image_size: int, batch_frames: int, device: torch.device, precision: torch.dtype
    ) -> None:
        self.backbone = backbone.to(device).to(memory_format=torch.channels_last)
        self.image_size = image_size
        self.batch_frames = batch_frames
        self.device = device
        self.precision = precision

    def encode(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return features_NKKD (float16) of frames (uint8 RGB, H x W x 3) that may differ in size.

        Raises:
            ValueError: the network's output is not finite in fp16.
            torch.OutOfMemoryError: a single frame does not fit the GPU.
        """
        if len(frames) > self.batch_frames:
            half = len(frames) // 2
            return np.concatenate([self.encode(frames[:half]), self.encode(frames[half:])])
        try:
            return self._encode_batch(frames)
        except torch.OutOfMemoryError:
            if len(frames) == 1:
                raise
        self.batch_frames = (len(frames) + 1) // 2
        logger.warning("GPU memory: batches halved to %d frames", self.batch_frames)
        torch.cuda.empty_cache()
        return self.encode(frames)

    @torch.inference_mode()
    def _encode_batch(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        pixels_NCHW = resize(frames, self.image_size, self.device)
        frames_NCHW = normalise(pixels_NCHW, self.backbone)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            features_NKKD = self.backbone(frames_NCHW)
        features_NKKD = features_NKKD.to(torch.float16, memory_format=torch.contiguous_format)
        if not features_NKKD.isfinite().all():
            raise ValueError(f"features.weights: {self.backbone.name} gives features beyond fp16")
        return features_NKKD.cpu().numpy()

    def preprocessing(self) -> dict[str, Any]:
        """Say what is done to a frame before the network and to its map after, as JSON types."""
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


def resize(frames: Sequence[np.ndarray], image_size: int, device: torch.device) -> Tensor:
    """Resize frames (uint8, H x W x 3) to squares on the device: uint8, NCHW in channels-last memory."""
    resized = []
    for _, same_size in itertools.groupby(frames, key=np.shape):
        pixels_NHWC = torch.from_numpy(np.stack(list(same_size))).to(device, non_blocking=True)
        resized.append(_resize_batch(pixels_NHWC.permute(0, 3, 1, 2), image_size))
    return torch.cat(resized).contiguous(memory_format=torch.channels_last)


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
