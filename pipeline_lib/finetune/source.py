"""What the examples of a stream are made from: frames, optical flows or clips.

Shape suffixes: N frames, T frames of an example, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.backbones.build import Backbone
from pipeline_lib.params import StreamParams
from pipeline_lib.streams.encoding import decoded_side, normalise
from pipeline_lib.streams.flow.opening import flow_spec, open_flow
from pipeline_lib.video.decoders import RGB, Derived, Wanted


@dataclass(frozen=True)
class Source:
    """How a video becomes images to keep, and which consecutive images are an example."""

    wanted: Wanted
    """What it needs from the decoder: the frames, or the images of flow."""
    images: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]]
    """Takes all arrays of what is wanted (uint8, NHWC), returns an image for each frame (uint8, NHWC), in a decoding thread."""
    side: int
    """Side in pixels of the images that are kept."""
    channels: int
    offsets: tuple[int, ...]
    """Position of each image of an example after its first one, ascending."""
    decoded_side: int
    """Maximum side of decoded frames."""

    @property
    def span(self) -> int:
        """Number of consecutive images from an example's first to its last one."""
        return self.offsets[-1] + 1

    @property
    def image_bytes(self) -> int:
        """Size of an image that is kept."""
        return self.side**2 * self.channels


def source_of(stream: StreamParams, backbone: Backbone, clip_frames: int, device: torch.device) -> Source:
    """Return what a stream's examples are made from.

    Args:
        stream: the stream.
        backbone: its backbone, which decides on the frames of a clip.
        clip_frames: frames of a clip.
        device: where flow is computed, if its method uses a GPU.

    Raises:
        UserError: OpenCV or the weights of the flow's method are missing, or clips are too short for the backbone.
    """
    side, max_side = stream.image_size, decoded_side(stream.image_size)
    if stream.input == "frame":
        return Source(RGB, iter, side, 3, (0,), max_side)
    if stream.input == "clip":
        return Source(RGB, iter, side, 3, backbone.frames_of_clip(clip_frames), max_side)
    # Flow is smooth: at half its side it takes a quarter of the memory.
    spec = flow_spec(stream, max_side=(side + 1) // 2)
    channels = 3 if spec.has_magnitude else 2
    flow = open_flow(spec, stream, device)
    wanted, images = (flow, iter) if isinstance(flow, Derived) else (RGB, flow.encode_arrays)
    return Source(wanted, images, spec.kept_side, channels, tuple(range(stream.stack)), max_side)


def network_input(images_NTCHW: Tensor, backbone: Backbone, image_size: int) -> Tensor:
    """Normalise examples (uint8) and return them as the backbone takes them.

    Returns:
        frames_NCHW, stacks of flows (N, T * C, H, W), or clips_NCTHW.
    """
    if backbone.input == "clip":
        frames_NTCHW = normalise(images_NTCHW.flatten(0, 1), backbone).unflatten(0, images_NTCHW.shape[:2])
        return frames_NTCHW.transpose(1, 2)
    images_NCHW = normalise(images_NTCHW.flatten(1, 2), backbone)
    if images_NCHW.shape[-1] == image_size:
        return images_NCHW
    return torch.nn.functional.interpolate(images_NCHW, size=(image_size, image_size), mode="bilinear")
