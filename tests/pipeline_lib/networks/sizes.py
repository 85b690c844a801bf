"""Feature channels of small models."""

from __future__ import annotations

from pipeline_lib.params import num_streams, split_model
from pipeline_lib.params.models import SECOND_IS_OPTIONAL


def split_channels(model: str, channels: int) -> int | tuple[int, int]:
    """Return the channels of a model's stream, or of the two streams that it needs, whose sum is `channels`."""
    name, _ = split_model(model)
    needs_two = num_streams(name) == 2 and name not in SECOND_IS_OPTIONAL
    return (channels - channels // 3, channels // 3) if needs_two else channels
