"""The optical flow methods by name. `StreamParams.method` accepts the same names."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline_lib.params.stages import StreamParams
from pipeline_lib.streams.flow.method import FlowMethod
from pipeline_lib.streams.flow.opencv import dis, farneback, tvl1
from pipeline_lib.streams.flow.raft import raft

METHODS: dict[str, Callable[[StreamParams, torch.device], FlowMethod]] = {
    "dis": dis,
    "farneback": farneback,
    "tvl1": tvl1,
    "raft": raft,
}
