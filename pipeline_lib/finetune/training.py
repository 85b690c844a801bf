"""The finetune stage: train the backbone to classify single frames of the training split.

For a pretrained backbone (ImageNet weights or a file), tuning starts from the best linear head on its frozen features, and the
tuned weights are kept only if they lower the validation loss. A random backbone is trained from scratch with a random head.

Shape suffixes: N frames, C colour channels (3) or classes, D feature channels, H W pixels.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline_lib.artifacts import layout
from pipeline_lib.backbones.build import Backbone, build_backbone
from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.compute.devices import choose_device, choose_precision
from pipeline_lib.compute.gpu_sharing import exclusive_gpu
from pipeline_lib.errors import UserError
from pipeline_lib.finetune.augmentation import augment
from pipeline_lib.finetune.blocks import last_blocks
from pipeline_lib.finetune.classifier import FrameClassifier
from pipeline_lib.finetune.frames import FrameStore, load_frames
from pipeline_lib.finetune.head import fit_head
from pipeline_lib.params import FeaturesParams, FinetuneParams
from pipeline_lib.streams.encoding import normalise
from pipeline_lib.training.fitting import OnEpoch, fit

logger = logging.getLogger(__name__)

LABEL_SMOOTHING = 0.1
WARM_UP = 0.2
"""Fraction of all steps in which the learning rate rises to its peak; afterwards it follows a cosine."""


class FrameTrainer:
    """Train and validate a frame classifier; provides the callbacks of `fit`."""

    def __init__(
        self,
        backbone: Backbone,
        tuned: Sequence[nn.Module],
        num_classes: int,
        stores: Mapping[str, FrameStore],
        params: FinetuneParams,
        features: FeaturesParams,
    ) -> None:
        self.params = params
        self.backbone = backbone
        self.stores = stores
        self.device = choose_device(features.device)
        self.precision = choose_precision(features.precision, self.device, training=True)
        self.is_pretrained = features.weights != "random"
        self.model = FrameClassifier(backbone, tuned, num_classes)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=params.learning_rate, weight_decay=params.weight_decay)

    def start(self) -> dict[str, float]:
        """Fit the head to the frozen features and return its validation metrics.

        If the backbone is random, the head is reset to random weights afterwards.
        """
        fit_head(self.model.head, self._features("train"), self._features("val"))
        frozen = self.validate()
        if not self.is_pretrained:
            self.model.head.reset_parameters()
        return frozen

    def train_epoch(self, epoch: int, generator: torch.Generator) -> dict[str, float]:
        """Train on randomly drawn frames and return their mean loss and accuracy."""
        self.model.train()
        store, params = self.stores["train"], self.params
        indices = store.draw(params.frames_per_video, generator)
        batches = indices.tensor_split(math.ceil(len(indices) / params.batch_size))
        logits = []
        for step, batch in enumerate(batches):
            self._set_learning_rate((epoch - 1 + step / len(batches)) / params.epochs)
            frames_NCHW = self._frames(store, batch)
            frames_NCHW = augment(frames_NCHW, generator, flip=params.flip, crop=params.crop, colour=params.colour)
            logits.append(self._train_step(frames_NCHW, store.labels[batch].to(self.device)))
        return metrics("train", torch.cat(logits), store.labels[indices].to(self.device))

    def validate(self) -> dict[str, float]:
        """Return mean loss and accuracy over the validation frames."""
        features_ND, labels_N = self._features("val")
        with torch.no_grad(), self._autocast():
            return metrics("val", self.model.head(features_ND).float(), labels_N)

    def _train_step(self, frames_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        """Take one optimizer step and return the batch's logits_NC."""
        with self._autocast():
            logits_NC = self.model(frames_NCHW.contiguous(memory_format=torch.channels_last)).float()
        loss = nn.functional.cross_entropy(logits_NC, labels_N, label_smoothing=LABEL_SMOOTHING)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return logits_NC.detach()

    @torch.no_grad()
    def _features(self, split: str) -> tuple[Tensor, Tensor]:
        """Return features_ND and labels_N of as many frames of a split as an epoch has, without augmentation."""
        self.model.eval()
        store = self.stores[split]
        indices = store.draw(self.params.frames_per_video, torch.Generator().manual_seed(self.params.seed))
        with self._autocast():
            batches = indices.split(self.params.batch_size)
            features_ND = torch.cat([self.model.features(self._frames(store, batch)).float() for batch in batches])
        return features_ND, store.labels[indices].to(self.device)

    def _frames(self, store: FrameStore, batch: Tensor) -> Tensor:
        return normalise(store.frames[batch].to(self.device), self.backbone)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _set_learning_rate(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.learning_rate * one_cycle(progress)


def metrics(split: str, logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Return `<split>_loss` and `<split>_frame_accuracy`."""
    loss = nn.functional.cross_entropy(logits_NC, labels_N)
    accuracy = (logits_NC.argmax(dim=1) == labels_N).double().mean()
    return {f"{split}_loss": loss.item(), f"{split}_frame_accuracy": accuracy.item()}


def one_cycle(progress: float) -> float:
    """Return the learning rate as a fraction of its peak; `progress` is the fraction of steps done, 0 to 1."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def finetune_backbone(
    clips: pd.DataFrame,
    video_path: Callable[[str], Path],
    directory: Path,
    partial: Path,
    params: FinetuneParams,
    features: FeaturesParams,
    *,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Tune the backbone on frames of the training split and write `backbone.safetensors` and `history.json`.

    Args:
        clips: all clips, with video, class_name, split, first_frame, valid_frames.
        video_path: returns the path of a subsampled video by its id.
        directory: existing folder to write to.
        partial: existing folder for the state that a killed run resumes from.
        params: blocks, epochs, batch size, learning rate, ...
        features: the backbone, its initial weights, and the size of its frames.
        on_epoch: called with each row of the history.

    Returns:
        epochs, best_epoch (0 if the initial weights were kept), train_frames, val_frames, val_frame_accuracy, and
        frozen_val_frame_accuracy (of the linear head on the frozen features).

    Raises:
        UserError: no train or val clips, more blocks than the backbone has, a video that cannot be decoded, or weights that
            are not available.
    """
    classes = sorted(clips["class_name"].unique())
    device = choose_device(features.device)
    # Dropout on a GPU uses the global generator, so no other thread may capture a graph or set TF32 meanwhile.
    with reproducible(params.seed, deterministic=True), exclusive_gpu(device):
        backbone = build_backbone(features.backbone, features.weights, grid=features.grid, seed=features.seed)
        backbone.map_shape(features.image_size)
        tuned = last_blocks(backbone, params.blocks)
        stores = dict(_load_stores(clips, classes, video_path, params, features))
        trainer = FrameTrainer(backbone, tuned, len(classes), stores, params, features)
        counts, history = _tune(trainer, partial / "state.pt", on_epoch)
    _save(backbone, directory / layout.BACKBONE)
    (directory / layout.HISTORY).write_text(json.dumps(history, indent=1), encoding="utf-8")
    return counts | {f"{split}_frames": len(store.labels) for split, store in stores.items()}


def _tune(trainer: FrameTrainer, state_path: Path, on_epoch: OnEpoch | None) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train, keep the better of the initial and the tuned weights in the backbone, and return counts and history."""
    initial_weights = copy.deepcopy(trainer.backbone.extractor.state_dict())
    frozen = trainer.start()
    progress = fit(
        trainer.model,
        trainer.optimizer,
        train_epoch=trainer.train_epoch,
        validate=trainer.validate,
        epochs=trainer.params.epochs,
        patience=trainer.params.patience,
        seed=trainer.params.seed,
        state_path=state_path,
        on_epoch=on_epoch,
    )
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in progress.history]
    best, best_epoch = history[progress.best_epoch - 1], progress.best_epoch
    if trainer.is_pretrained and frozen["val_loss"] <= best["val_loss"]:
        logger.info("tuning did not lower the validation loss of %.4g; keeping the initial weights", frozen["val_loss"])
        trainer.backbone.extractor.load_state_dict(initial_weights)
        best, best_epoch = frozen, 0
    counts = {
        "epochs": len(history),
        "best_epoch": best_epoch,
        "val_frame_accuracy": best["val_frame_accuracy"],
        "frozen_val_frame_accuracy": frozen["val_frame_accuracy"],
    }
    return counts, history


def _load_stores(
    clips: pd.DataFrame,
    classes: list[str],
    video_path: Callable[[str], Path],
    params: FinetuneParams,
    features: FeaturesParams,
) -> Iterator[tuple[str, FrameStore]]:
    for split, frames_per_video in (("train", None), ("val", params.frames_per_video)):
        split_clips = clips[clips["split"] == split]
        if split_clips.empty:
            raise UserError(f"finetune: no clips in the {split} split; add videos or set `finetune.enabled: false`")
        store = load_frames(split_clips, classes, video_path, image_size=features.image_size, frames_per_video=frames_per_video)
        yield split, store


def _save(backbone: Backbone, path: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.extractor.state_dict().items()}
    save_file(weights, path)
