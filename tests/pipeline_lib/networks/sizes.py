"""Feature channels of small models."""

from __future__ import annotations

from pipeline_lib.params import num_streams, split_model


def split_channels(model: str, channels: int) -> int | tuple[int, int]:
    """Return the channels of a model's stream, or of its two streams, whose sum is `channels`."""
    return channels if num_streams(split_model(model)[0]) == 1 else (channels - channels // 3, channels // 3)
