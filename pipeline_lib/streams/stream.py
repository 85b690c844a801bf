"""Streams: what models see of a video, for each clip `steps x K x K x D`.

An open stream turns the decoded frames of a video into images (frames, optical flow, or the frames of clips), and its encoder
turns these into features. Several streams share one decoding of a video.

Shape suffixes: N images, H W C pixels and channels (flow: S S C), T frames of a clip, S steps of a clip, K grid side,
D feature channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline_lib.backbones.build import build_backbone, check_name
from pipeline_lib.compute.devices import PRECISIONS, choose_precision
from pipeline_lib.params import StreamParams
from pipeline_lib.params.stages import FLOW_KEYS, FLOW_VERSIONS
from pipeline_lib.streams.encoding import Encoder, batches, decoded_side, default_batch, pinned_array
from pipeline_lib.streams.windows import Window, cut_windows
from pipeline_lib.video.decoders import RGB, Derived, Wanted

if TYPE_CHECKING:
    from pipeline_lib.streams.flow.encoder import FlowEncoder


@dataclass(frozen=True)
class Span:
    """The part of a video that is encoded, and the clips in it."""

    starts: Sequence[int]
    """First frame of each clip."""
    num_frames: int
    """Frames of the video up to the last clip's end; a clip that exceeds them is padded."""


class Stream:
    """An open stream; thread-safe."""

    def __init__(
        self,
        params: StreamParams,
        *,
        clip_frames: int,
        device: torch.device,
        weights_file: Path | None = None,
        flow_weights: Path | None = None,
    ) -> None:
        """Load the backbone and, for optical flow, its method.

        Args:
            params: input, backbone, weights, sizes and precision.
            clip_frames: frames per clip.
            device: where to compute.
            weights_file: file with a state dict that replaces `params.weights`, for example from the finetune stage.
            flow_weights: file with the state dict at `params.method_weights`, which need not exist then.

        Raises:
            UserError: a network or weights are not available, or the network does not fit its input.
        """
        self.params = params
        self._clip_frames = clip_frames
        check_name(params.backbone, "clip" if self.reads_clips else "image")
        backbone = build_backbone(
            params.backbone,
            params.weights,
            grid=params.grid,
            seed=params.seed,
            weights_file=weights_file,
            channels_in=params.input_channels,
            image_size=params.image_size,
        )
        self.step_frames = backbone.step_frames(clip_frames)
        """The frame in the middle of each step of a clip."""
        self._network_frames = backbone.frames_of_clip(clip_frames) if self.reads_clips else (0,)
        self.encoder = Encoder(
            backbone,
            image_size=params.image_size,
            batch_frames=params.batch_frames or default_batch(device, params.image_size),
            device=device,
            precision=choose_precision(params.precision, device, training=False),
            clip_frames=len(self._network_frames),
        )
        flow = _open_flow(params, flow_weights, device) if params.input == "flow" else None
        self.wanted: Wanted = flow if isinstance(flow, Derived) else RGB
        """What it needs from the decoder: the frames, or the images of flow."""
        self._flow = flow if not isinstance(flow, Derived) else None
        self.preprocessing = self._describe()
        """Everything from decoded frames to the pooled feature map but the backbone, as JSON types."""

    @property
    def reads_clips(self) -> bool:
        """Whether the network sees whole clips, which give all steps at once, also those of padding."""
        return self.params.input == "clip"

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape (K, K, D) of a step."""
        backbone = self.encoder.backbone
        return backbone.grid, backbone.grid, backbone.channels

    @property
    def decoded_side(self) -> int:
        """Maximum side in pixels of the decoded frames that it is made from."""
        return decoded_side(self.params.image_size)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the features were made with."""
        backbone = self.encoder.backbone
        return {
            "backbone": backbone.name,
            "weights": backbone.weights_description,
            "weights_sha256": backbone.weights_sha256,
            "preprocessing": self.preprocessing,
            "precision": next(name for name, dtype in PRECISIONS.items() if dtype == self.encoder.precision),
        }

    def images(self, arrays: Iterable[np.ndarray], span: Span) -> Iterator[np.ndarray]:
        """Yield the images of a video for the encoder (uint8, N x H x W x C).

        Args:
            arrays: all images of the video in order that are `wanted`, such as its frames (uint8 RGB, N x H x W x 3).
            span: the clips, and where they end. Flow at their borders is that of the video.

        Returns:
            arrays with the images of consecutive frames, or of one clip each, padded with its last frame.
        """
        if self.reads_clips:
            for window in cut_windows(arrays, span.starts, num_frames=span.num_frames, frames=self._clip_frames):
                yield self._for_upload(window.values[list(self._network_frames)])
        elif self._flow:
            for flows_NSSC in _first(self._flow.encode_arrays(arrays), span.num_frames):
                yield self._for_upload(flows_NSSC)
        else:
            yield from _first(arrays, span.num_frames)

    def windows(self, arrays: Iterable[np.ndarray], span: Span) -> Iterator[Window]:
        """Yield the features_SKKD (fp16) of the span's clips, which may overlap; keeps a clip and a batch in memory."""
        images = batches(self.images(arrays, span), self.encoder.batch_frames)
        features = (pending.wait() for batch in images for pending in self.encoder.encode(batch))
        if not self.reads_clips:
            yield from cut_windows(features, span.starts, num_frames=span.num_frames, frames=self._clip_frames)
            return
        clips = batches(features, len(self.step_frames))
        for first_frame, clip in zip(span.starts, clips, strict=True):
            valid_frames = min(self._clip_frames, span.num_frames - first_frame)
            yield Window(first_frame, valid_frames, np.concatenate(clip))

    def covered_frames(self, images: np.ndarray) -> int:
        """Return how many frames of a video an array of `images` stands for."""
        return self._clip_frames if self.reads_clips else len(images)

    def _for_upload(self, images: np.ndarray) -> np.ndarray:
        """Return images in memory that a GPU can copy from while the host computes."""
        if self.encoder.device.type == "cpu":
            return images
        pinned = pinned_array(images.shape)
        np.copyto(pinned, images)
        return pinned

    def _describe(self) -> dict[str, Any]:
        backbone, image_size = self.encoder.backbone, self.params.image_size
        channels, height, width = backbone.map_shape(image_size, *([self._clip_frames] if self.reads_clips else []))
        return _describe_input(self.params, self._clip_frames) | {
            "image_size": image_size,
            "mean": list(backbone.preprocessing.mean),
            "std": list(backbone.preprocessing.std),
            "map": [height, width, channels],
            "grid": backbone.grid,
            "pooling": "none" if (height, width) == (backbone.grid,) * 2 else "adaptive average",
        }


def interleave(
    streams: Mapping[str, Stream], decoded: Iterable[tuple[Wanted, np.ndarray]], span: Span
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the images of several streams of a video that is decoded once, each with its stream's name.

    The stream that is furthest behind comes next, so that few decoded frames are kept.

    Args:
        streams: the streams by name.
        decoded: all that the streams want of the video, as `read_images` yields it.
        span: the clips, and where they end.
    """
    branches = share(decoded, [stream.wanted for stream in streams.values()])
    images = {name: stream.images(branch, span) for (name, stream), branch in zip(streams.items(), branches, strict=True)}
    covered = dict.fromkeys(streams, 0)
    while covered:
        name = min(covered, key=covered.__getitem__)
        array = next(images[name], None)
        if array is None:
            del covered[name]
            continue
        covered[name] += streams[name].covered_frames(array)
        yield name, array


def wanted_of(streams: Iterable[Stream]) -> list[Wanted]:
    """Return what streams need from the decoder, each once."""
    return list(dict.fromkeys(stream.wanted for stream in streams))


def share(decoded: Iterable[tuple[Wanted, np.ndarray]], wanted: Sequence[Wanted]) -> list[Iterator[np.ndarray]]:
    """Return an iterator of the arrays of each that is wanted, even several times.

    Unlike with `itertools.tee`, an array is let go when the last one passed it.
    """
    source = iter(decoded)
    queues = [deque[np.ndarray]() for _ in wanted]

    def branch(queue: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            while not queue:
                item = next(source, None)
                if item is None:
                    return
                for each, kind in zip(queues, wanted, strict=True):
                    if kind == item[0]:
                        each.append(item[1])
                del item
            yield queue.popleft()

    return [branch(queue) for queue in queues]


def params_of(provenance: Mapping[str, Any], device: torch.device) -> StreamParams:
    """Return the parameters of the stream with this provenance; `weights` is `random`, to be replaced by a file's.

    On a CPU fp32 replaces fp16, which is slow there.
    """
    preprocessing = provenance["preprocessing"]
    precision = provenance["precision"].split(", ", maxsplit=1)[0]
    return StreamParams(
        backbone=provenance["backbone"],
        weights="random",
        precision="fp32" if precision == "fp16" and device.type == "cpu" else precision,
        **{name: preprocessing[name] for name in ("input", "image_size", "grid", *FLOW_KEYS) if name in preprocessing},
    )


def _first(arrays: Iterable[np.ndarray], number: int) -> Iterator[np.ndarray]:
    """Yield the first `number` elements of arrays, and read no further."""
    missing = number
    for array in arrays if missing else ():
        yield array[:missing]
        missing -= min(missing, len(array))
        if not missing:
            return


def _describe_input(params: StreamParams, clip_frames: int) -> dict[str, Any]:
    """Describe how images are made from decoded frames; `input` is left out for frames, as in older files."""
    if params.input == "flow":
        values = {name: getattr(params, name) for name in FLOW_KEYS} | {"encoding": params.flow_encoding}
        values |= FLOW_VERSIONS.get(params.method, {})
        return {"input": "flow"} | {name: value for name, value in values.items() if value is not None}
    frames = {"colour": "RGB", "resize": "bilinear, antialiased, aspect ratio not kept, rounded to uint8"}
    return frames | ({"input": "clip", "frames": clip_frames} if params.input == "clip" else {})


def _open_flow(params: StreamParams, weights: Path | None, device: torch.device) -> Derived | FlowEncoder:
    # It imports OpenCV and RAFT, which other streams do not need.
    from pipeline_lib.streams.flow.opening import flow_spec, open_flow

    params = params.model_copy(update={"method_weights": str(weights)}) if weights else params
    return open_flow(flow_spec(params), params, device)
