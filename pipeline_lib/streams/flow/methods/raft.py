"""RAFT (Teed and Deng 2020), torchvision's small variant, on RGB images.

Shape suffixes: N consecutive images, M = N - 1 flows, S side in pixels, C colour channels (3), P padded side.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

from pipeline_lib.backbones.weights import read_state_dict
from pipeline_lib.compute.determinism import seeded
from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.errors import UserError
from pipeline_lib.params.stages import StreamParams
from pipeline_lib.streams.flow.method import DeviceMethod, FlowMethod

MULTIPLE, MIN_SIDE = 8, 128
"""RAFT takes images whose sides are multiples of 8 and at least 128 pixels."""

_lock = threading.Lock()
"""One batch at a time: threads that share a device gain nothing from more, and their memory would add up."""


def _open(params: StreamParams, device: torch.device) -> FlowMethod:
    """Return RAFT on a device, with the weights at `method_weights` or torchvision's."""
    network = _load(params.method_weights).to(device).eval()
    return FlowMethod(lambda: lambda images: _flows(network, np.stack(images), device), is_grey=False)


def _load(path: str | None) -> nn.Module:
    if path is None:
        return _download()
    if not Path(path).expanduser().is_file():
        raise UserError(f"features.method_weights: {path}: no such file; give the path of a state dict of raft_small")
    with seeded(0):  # its first weights must not advance the global generator
        network = raft_small(weights=None)
    try:
        network.load_state_dict(read_state_dict(Path(path).expanduser()))
    except UserError as error:
        raise UserError(str(error).replace("features.weights", "features.method_weights", 1)) from None
    except RuntimeError:
        raise UserError(
            f"features.method_weights: {path} does not fit torchvision's raft_small; give this network's state dict"
        ) from None
    return network


def _download() -> nn.Module:
    try:
        with seeded(0):
            return raft_small(weights=Raft_Small_Weights.DEFAULT)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"features.method = raft: torchvision could not download the weights of raft_small ({reason}); "
            "offline, set `features.method_weights: PATH` to a local state dict"
        ) from None


@torch.inference_mode()
def _flows(network: nn.Module, images_NSSC: np.ndarray, device: torch.device) -> np.ndarray:
    with deterministic_inference(device), _lock:
        images_NCSS = torch.from_numpy(images_NSSC).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        side = images_NCSS.shape[-1]
        padded_NCPP = nn.functional.pad(images_NCSS, (0, _padding(side)) * 2, mode="replicate")
        flows_M2PP = network(padded_NCPP[:-1], padded_NCPP[1:])[-1]
        flows_MSS2 = flows_M2PP[:, :, :side, :side].permute(0, 2, 3, 1).contiguous()
        return flows_MSS2.cpu().numpy()


def _padding(side: int) -> int:
    """Return the pixels to add to a side, at its end."""
    return max(MIN_SIDE, -(-side // MULTIPLE) * MULTIPLE) - side


METHOD = DeviceMethod(_open)
