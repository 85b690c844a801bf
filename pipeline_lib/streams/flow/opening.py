"""Open the optical flow of a stream, which the decoder processes compute, or this one on its device."""

from __future__ import annotations

from dataclasses import astuple

import torch

from pipeline_lib.params.stages import StreamParams
from pipeline_lib.streams.flow.encoder import FlowEncoder, FlowSpec, flow_images
from pipeline_lib.streams.flow.method import DeviceMethod, find_method
from pipeline_lib.video.decoders import Derived


def flow_spec(params: StreamParams, *, max_side: int | None = None) -> FlowSpec:
    """Return which flow images a stream needs; with `max_side` unstacked ones of at most this side."""
    computed_side = find_method(params.method).side_of(params.image_size)
    return FlowSpec(
        method=params.method,
        side=params.image_size,
        computed_side=computed_side,
        bound=params.bound,
        has_magnitude=params.flow_encoding == "image",
        stack=1 if max_side else params.stack,
        kept_side=min(max_side or computed_side, computed_side),
    )


def open_flow(spec: FlowSpec, params: StreamParams, device: torch.device) -> Derived | FlowEncoder:
    """Return what makes a stream's flow images: the decoder, or an encoder of its frames in this process.

    Args:
        spec: the images.
        params: the stream.
        device: where a method that decoders do not compute runs.

    Raises:
        UserError: the method's library or weights are not available.
    """
    method = find_method(params.method)
    if isinstance(method, DeviceMethod):
        return FlowEncoder(spec, method.open(params, device))
    method.open()  # what is missing is missing in the decoder processes, too
    return Derived(flow_images, astuple(spec))
