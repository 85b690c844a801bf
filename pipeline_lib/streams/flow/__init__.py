"""Optical flow between the frames of a video, computed while features are extracted and never stored."""

from pipeline_lib.streams.flow.encoder import FlowEncoder
from pipeline_lib.streams.flow.encoding import mirror

__all__ = ["FlowEncoder", "mirror"]
