"""Train and validate one model for an epoch."""

# N clips, B batch, T steps of a clip, K grid side, D channels, C classes

from __future__ import annotations

import math

import torch
from torch import nn

from pipeline_lib.compute.devices import choose_precision
from pipeline_lib.errors import UserError
from pipeline_lib.networks.dropout import draw_from
from pipeline_lib.networks.outputs import valid_mask
from pipeline_lib.networks.registry import model_kind
from pipeline_lib.params import ModelParams
from pipeline_lib.train.graph import GraphedStep
from pipeline_lib.train.loss import calibrated_cross_entropy, coverage_penalty, frame_cross_entropy
from pipeline_lib.training.batches import Batch, ClipLoader
from pipeline_lib.training.inference import infer
from pipeline_lib.training.voting import tally

GPU_VALIDATION_BATCH = 64
"""Validation batch size on a GPU, in clips; smaller batches are launch-bound."""


class Trainer:
    """Train a network epoch by epoch. On a GPU each step replays a CUDA graph, which `close` frees."""

    def __init__(
        self, network: nn.Module, device: torch.device, params: ModelParams, train: ClipLoader, val: ClipLoader
    ) -> None:
        """Prepare to train `network`, which must be on the device already, on `train` and to validate it on `val`.

        On a GPU the network's dropout gets its own generator, seeded here.
        """
        self.network, self.device, self.params = network, device, params
        self.train, self.val = train, val
        self.optimizer = make_optimizer(network, params)
        dtype = choose_precision("auto", device, training=True) if model_kind(params.model).gains_from_bf16 else torch.float32
        # Autocast's cache of cast weights would outlive the casts captured in a graph.
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16, cache_enabled=device.type == "cpu")
        self.generator: torch.Generator | None = None
        self._graphed: GraphedStep | None = None
        if device.type == "cuda":
            self.generator = torch.Generator(device).manual_seed(params.seed)
            draw_from(self.generator, network)
            self._graphed = GraphedStep(self._step, network, self.optimizer, params.batch_size, self.generator)

    def close(self) -> None:
        """Free the CUDA graph. No step may follow."""
        if self._graphed is not None:
            self._graphed.close()
            self._graphed = None  # breaks a reference cycle that would keep the features in memory

    def train_epoch(self, epoch: int, generator: torch.Generator) -> dict[str, float]:
        """Train on every clip once, in random order, and return the training metrics.

        Raises:
            UserError: the loss is not finite.
        """
        self.network.train()
        order_N = torch.randperm(len(self.train), generator=generator)
        sums = torch.zeros(4, dtype=torch.float64)
        for batch in self.train.batches(self.params.batch_size, order_N):
            sums = sums.to(batch.labels_B.device, non_blocking=True) + self.step(batch)
        loss, correct, num_frames, penalty = sums.tolist()
        self._check_finite(loss, f"epoch {epoch}")
        return {
            "train_loss": loss / num_frames,
            "train_frame_accuracy": correct / num_frames,
            "train_attention_penalty": penalty / len(self.train),
        }

    def step(self, batch: Batch) -> torch.Tensor:
        """Take one optimizer step and return sums over the batch: frame loss, correct frames, frames, clip penalty."""
        return self._step(batch) if self._graphed is None else self._graphed(batch)

    def _step(self, batch: Batch) -> torch.Tensor:
        valid_steps_B = batch.valid_steps_B
        with self.autocast:
            logits_BTC, attention_BTKK, _ = self.network(batch.features_BTKKD.float(), valid_steps_B.clamp(min=1))
        loss = frame_cross_entropy(logits_BTC, batch.labels_B, valid_steps_B)
        penalty = coverage_penalty(attention_BTKK, valid_steps_B)
        self.optimizer.zero_grad()
        objective = loss + self.params.attention_penalty * penalty if self.params.attention_penalty else loss
        objective.backward()
        self.optimizer.step()
        correct, num_frames = count_correct(logits_BTC.detach(), batch.labels_B, valid_steps_B)
        num_clips = (valid_steps_B > 0).sum()
        return torch.stack((loss.detach() * num_frames, correct, num_frames, penalty.detach() * num_clips)).double()

    def validate(self) -> dict[str, float]:
        """Return the metrics of the validation clips.

        Raises:
            UserError: the loss is not finite.
        """
        labels_N, valid_frames_N = self.val.labels_N, self.val.valid_frames_N
        valid_steps_N = self.val.valid_steps_N
        batch_size = GPU_VALIDATION_BATCH if self.device.type == "cuda" else self.params.batch_size
        of_steps = infer(self.network, self.val, batch_size)
        loss = frame_cross_entropy(of_steps.logits_NTC, labels_N, valid_steps_N).item()
        self._check_finite(loss, "validation")
        logits_NTC = of_steps.of_frames(self.val.step_frames, self.val.num_frames).logits_NTC
        correct, num_frames = count_correct(logits_NTC, labels_N, valid_frames_N)
        votes = tally(logits_NTC.softmax(dim=2).numpy(), valid_frames_N.numpy())
        return {
            "val_loss": loss,
            "val_calibrated_loss": calibrated_cross_entropy(of_steps.logits_NTC, labels_N, valid_steps_N),
            "val_frame_accuracy": int(correct) / int(num_frames),
            "val_clip_accuracy": float((votes.predicted == labels_N.numpy()).mean()),
        }

    def _check_finite(self, loss: float, where: str) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"{self.params.model}: the loss is {loss} in {where} with train.learning_rate = "
                f"{self.params.learning_rate:g}; lower the learning rate, or check the features for values that are not finite"
            )


def make_optimizer(network: nn.Module, params: ModelParams) -> torch.optim.Adam:
    """Return Adam with the article's L2 penalty: omega / 2 * sum of squares of the weights, without the biases."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": params.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    on_gpu = bool(weights) and weights[0].is_cuda
    return torch.optim.Adam(groups, lr=params.learning_rate, fused=True, capturable=on_gpu)


def count_correct(
    logits_BTC: torch.Tensor, labels_B: torch.Tensor, valid_steps_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of correct and of valid frames as tensors, without synchronising with the device."""
    mask_BT = valid_mask(valid_steps_B, logits_BTC.shape[1])
    correct_BT = (logits_BTC.argmax(dim=2) == labels_B[:, None]) & mask_BT
    return correct_BT.sum(), mask_BT.sum()
