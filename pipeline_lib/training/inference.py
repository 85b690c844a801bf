"""What a model says about clips: used by validation, evaluation and prediction, so that all three see the same."""

# N clips, T frames of a clip, K grid side, C classes

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pipeline_lib.compute.gpu import deterministic_inference
from pipeline_lib.training.batches import ClipSource


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for the clips of a source, in its order, in fp32 on the CPU. Padded frames are still in."""

    logits_NTC: torch.Tensor
    attention_NTKK: torch.Tensor


def infer(model: nn.Module, source: ClipSource, batch_size: int) -> Outputs:
    """Run the model, in fp32 and without dropout, over every clip of the source, whatever trainings do in other threads."""
    model.eval()
    logits, attention = [], []
    with torch.inference_mode():
        for batch in source.batches(batch_size):
            with deterministic_inference(batch.features_BTKKD.device):
                logits_BTC, attention_BTKK = model(batch.features_BTKKD.float(), batch.valid_frames_B)
            logits.append(logits_BTC.cpu())
            attention.append(attention_BTKK.cpu())
    return Outputs(torch.cat(logits), torch.cat(attention))
