"""Model inference over clips, shared by validation and evaluation."""

# N clips, T steps of a clip, K grid side, C classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.networks.outputs import ModelOutputs
from pipeline_lib.streams.steps import steps_of_frames
from pipeline_lib.training.batches import ClipLoader


@dataclass(frozen=True)
class Outputs:
    """Outputs for all clips of a loader, in its order, in fp32 on the CPU. Padded steps are included."""

    logits_NTC: torch.Tensor
    attention_NTKK: torch.Tensor
    importance_NT: torch.Tensor

    def of_frames(self, step_frames: Sequence[int], num_frames: int) -> Outputs:
        """Return the outputs for each of `num_frames` frames: those of the step whose middle frame is nearest.

        Importance is then that of the frame's step, and sums to 1 over steps, not over frames.
        """
        if step_frames == tuple(range(num_frames)):
            return self
        step_T = torch.from_numpy(steps_of_frames(step_frames, num_frames))
        return Outputs(self.logits_NTC[:, step_T], self.attention_NTKK[:, step_T], self.importance_NT[:, step_T])


def infer(model: nn.Module, loader: ClipLoader, batch_size: int) -> Outputs:
    """Run the model in evaluation mode and fp32 over every clip of the loader; safe while other threads train."""
    model.eval()
    batches: list[ModelOutputs] = []
    with torch.inference_mode():
        for batch in loader.batches(batch_size):
            with deterministic_inference(batch.features_BTKKD.device):
                outputs = model(batch.features_BTKKD.float(), batch.valid_steps_B)
            batches.append(ModelOutputs(*(output.cpu() for output in outputs)))
    return Outputs(*map(torch.cat, zip(*batches, strict=True)))


def infer_frames(model: nn.Module, loader: ClipLoader, batch_size: int) -> Outputs:
    """Return the outputs for every frame of every clip of the loader; see `infer`."""
    return infer(model, loader, batch_size).of_frames(loader.step_frames, loader.num_frames)
