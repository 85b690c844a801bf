"""Model inference over clips, shared by validation and evaluation."""

# N clips, T frames of a clip, K grid side, C classes

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.training.batches import ClipLoader


@dataclass(frozen=True)
class Outputs:
    """Outputs for all clips of a loader, in its order, in fp32 on the CPU. Padded frames are included."""

    logits_NTC: torch.Tensor
    attention_NTKK: torch.Tensor


def infer(model: nn.Module, loader: ClipLoader, batch_size: int) -> Outputs:
    """Run the model in evaluation mode and fp32 over every clip of the loader; safe while other threads train."""
    model.eval()
    logits, attention = [], []
    with torch.inference_mode():
        for batch in loader.batches(batch_size):
            with deterministic_inference(batch.features_BTKKD.device):
                logits_BTC, attention_BTKK = model(batch.features_BTKKD.float(), batch.valid_frames_B)
            logits.append(logits_BTC.cpu())
            attention.append(attention_BTKK.cpu())
    return Outputs(torch.cat(logits), torch.cat(attention))
