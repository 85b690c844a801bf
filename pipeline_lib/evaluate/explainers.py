"""The registry of explainers: maps of the cells that a model's decision depends on, computed after training.

They stand beside a model's attention as one more map, and in its place for models without attention over cells.
"""

# N clips, B batch, T steps of a clip, K grid side

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.evaluate.grad_cam import grad_cam
from pipeline_lib.training.batches import ClipLoader

Explainer = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes a model, features_BTKKD and valid_steps_B; returns map_BTKK, which sums to 1 over the cells of each step."""

GRAD_CAM = "grad_cam"

EXPLAINERS: dict[str, Explainer] = {GRAD_CAM: grad_cam}

IN_PLACE_OF_ATTENTION = GRAD_CAM
"""The explainer whose map is checked where a model has no attention over cells."""

BATCH_CLIPS = 16
"""Clips per batch: a backward pass keeps what a forward pass of `infer` does not."""


def explain(explainer: Explainer, model: nn.Module, loader: ClipLoader) -> torch.Tensor:
    """Return the explainer's map_NTKK of every step of every clip of the loader, in fp32 on the CPU."""
    model.eval().requires_grad_(False)
    maps = []
    for batch in loader.batches(BATCH_CLIPS):
        with deterministic_inference(batch.features_BTKKD.device):
            maps.append(explainer(model, batch.features_BTKKD.float(), batch.valid_steps_B).cpu())
    return torch.cat(maps)
