"""Open the optical flow of a stream, which the decoder processes compute, or this one on its device."""

from __future__ import annotations

from dataclasses import astuple

import torch

from pipeline_lib.params.stages import StreamParams
from pipeline_lib.streams.flow.encoder import FlowEncoder, FlowSpec, flow_images
from pipeline_lib.streams.flow.method import DeviceMethod, find_method
from pipeline_lib.video.decoders import Derived


def open_flow(params: StreamParams, device: torch.device, *, kept_side: int | None = None) -> Derived | FlowEncoder:
    """Return what makes a stream's flow images: the decoder, or an encoder of its frames in this process.

    Args:
        params: the stream.
        device: where a method that decoders do not compute runs.
        kept_side: leave flows unstacked, and scale them down to this side; their values stay pixels at `image_size`.

    Raises:
        UserError: the method's library or weights are not available.
    """
    spec = FlowSpec(
        method=params.method,
        side=params.image_size,
        bound=params.bound,
        has_magnitude=params.flow_encoding == "image",
        stack=1 if kept_side else params.stack,
        kept_side=kept_side or params.image_size,
    )
    method = find_method(params.method)
    if isinstance(method, DeviceMethod):
        return FlowEncoder(spec, method.open(params, device))
    method.open()  # what is missing is missing in the decoder processes, too
    return Derived(flow_images, astuple(spec))
