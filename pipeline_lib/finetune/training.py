"""The finetune stage: train a stream's backbone to classify single frames, stacks of flows, or clips of the training split.

For a pretrained backbone (ImageNet weights or a file), tuning starts from the best linear head on its frozen features, and the
tuned weights are kept only if they lower the validation loss. A random backbone is trained from scratch with a random head.

Shape suffixes: N examples, T images of an example, C channels or classes, D feature channels, H W pixels.
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
from pipeline_lib.backbones.build import Backbone, build_backbone, check_name
from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.compute.devices import choose_device, choose_precision
from pipeline_lib.compute.gpu_sharing import exclusive_gpu
from pipeline_lib.errors import UserError
from pipeline_lib.finetune.augmentation import augment, mirror_flows
from pipeline_lib.finetune.blocks import last_blocks
from pipeline_lib.finetune.classifier import FrameClassifier
from pipeline_lib.finetune.frames import FrameStore, load_frames
from pipeline_lib.finetune.head import fit_head
from pipeline_lib.finetune.source import Source, network_input, source_of
from pipeline_lib.params import FinetuneParams, StreamParams
from pipeline_lib.training.fitting import OnEpoch, fit

logger = logging.getLogger(__name__)

LABEL_SMOOTHING = 0.1

DROPOUT = 0.5
"""Of the head. Temporal streams since Simonyan and Zisserman (2014) have 0.8 or 0.9, before layers of 4,096 units. Here, before
a linear layer on the mean over cells, flow was better with 0.5 (docs/results.md)."""

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
        stream: StreamParams,
    ) -> None:
        self.params = params
        self.stream = stream
        self.is_flow = stream.input == "flow"
        self.backbone = backbone
        self.stores = stores
        self.device = choose_device(stream.device)
        self.precision = choose_precision(stream.precision, self.device, training=True)
        self.is_pretrained = stream.weights != "random"
        self.model = FrameClassifier(backbone, tuned, num_classes, DROPOUT)
        self.model.to(self.device)
        backbone.channels_last()
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
        """Train on randomly drawn examples and return their mean loss and accuracy."""
        self.model.train()
        store, params = self.stores["train"], self.params
        indices = store.draw(params.frames_per_video, generator)
        batches = indices.tensor_split(math.ceil(len(indices) / params.batch_size))
        logits = []
        for step, batch in enumerate(batches):
            self._set_learning_rate((epoch - 1 + step / len(batches)) / params.epochs)
            inputs = self._augmented(store.load(batch).to(self.device), generator)
            logits.append(self._train_step(inputs, store.labels[batch].to(self.device)))
        return metrics("train", torch.cat(logits), store.labels[indices].to(self.device))

    def validate(self) -> dict[str, float]:
        """Return mean loss and accuracy over the validation examples."""
        features_ND, labels_N = self._features("val")
        with torch.no_grad(), self._autocast():
            return metrics("val", self.model.head(features_ND).float(), labels_N)

    def _augmented(self, images_NTCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Return the network's inputs of augmented examples. Flow is mirrored before it is normalised, where that is exact."""
        params = self.params
        if not self.is_flow:
            inputs = self._inputs(images_NTCHW)
            return augment(inputs, generator, flip=params.flip, crop=params.crop, colour=params.colour)
        if params.flip:
            images_NTCHW = mirror_flows(images_NTCHW, generator)
        return augment(self._inputs(images_NTCHW), generator, flip=False, crop=params.crop, colour=0)

    def _train_step(self, inputs: Tensor, labels_N: Tensor) -> Tensor:
        """Take one optimizer step and return the batch's logits_NC."""
        channels_last = torch.channels_last if inputs.ndim == 4 else torch.channels_last_3d
        with self._autocast():
            logits_NC = self.model(inputs.contiguous(memory_format=channels_last)).float()
        loss = nn.functional.cross_entropy(logits_NC, labels_N, label_smoothing=LABEL_SMOOTHING)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return logits_NC.detach()

    @torch.no_grad()
    def _features(self, split: str) -> tuple[Tensor, Tensor]:
        """Return features_ND and labels_N of as many examples of a split as an epoch has, without augmentation."""
        self.model.eval()
        store = self.stores[split]
        indices = store.draw(self.params.frames_per_video, torch.Generator().manual_seed(self.params.seed))
        with self._autocast():
            batches = indices.split(self.params.batch_size)
            images = (store.load(batch).to(self.device) for batch in batches)
            features_ND = torch.cat([self.model.features(self._inputs(images_NTCHW)).float() for images_NTCHW in images])
        return features_ND, store.labels[indices].to(self.device)

    def _inputs(self, images_NTCHW: Tensor) -> Tensor:
        return network_input(images_NTCHW, self.backbone, self.stream.image_size)

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
    stream: StreamParams,
    *,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Tune the backbone of a stream on the training split and write `backbone.safetensors` and `history.json`.

    Args:
        clips: all clips, with video, class_name, split, first_frame, valid_frames. The longest clip's length is that of the
            clips that a backbone for clips is tuned on.
        video_path: returns the path of a subsampled video by its id.
        directory: existing folder to write to.
        partial: existing folder for the state that a killed run resumes from.
        params: blocks, epochs, batch size, learning rate, ...
        stream: the backbone, its initial weights, and what it sees.
        on_epoch: called with each row of the history.

    Returns:
        epochs, best_epoch (0 if the initial weights were kept), train_frames, val_frames, val_frame_accuracy, and
        frozen_val_frame_accuracy (of the linear head on the frozen features). Frames stand for examples of any stream: frames,
        stacks of flows, or clips.

    Raises:
        UserError: no train or val clips, more blocks than the backbone has, a video that cannot be decoded, or weights that
            are not available.
    """
    classes = sorted(clips["class_name"].unique())
    device, clip_frames = choose_device(stream.device), int(clips["valid_frames"].max())
    backbone = _build(stream, clip_frames)
    tuned = last_blocks(backbone, params.blocks)
    # Loaded before the GPU is taken, because threads may compute flow on it.
    source = source_of(stream, backbone, clip_frames, device)
    stores = dict(_load_stores(clips, classes, video_path, params, source, partial))
    # Dropout on a GPU uses the global generator, so no other thread may capture a graph or set TF32 meanwhile.
    with reproducible(params.seed, deterministic=True), exclusive_gpu(device):
        trainer = FrameTrainer(backbone, tuned, len(classes), stores, params, stream)
        counts, history = _tune(trainer, partial / "state.pt", on_epoch)
    _save(backbone, directory / layout.BACKBONE)
    (directory / layout.HISTORY).write_text(json.dumps(history, indent=1), encoding="utf-8")
    return counts | {f"{split}_frames": len(store.labels) for split, store in stores.items()}


def _build(stream: StreamParams, clip_frames: int) -> Backbone:
    """Build a stream's backbone and check that it takes images of this size, or clips of this length."""
    check_name(stream.backbone, "clip" if stream.input == "clip" else "image")
    backbone = build_backbone(
        stream.backbone,
        stream.weights,
        grid=stream.grid,
        seed=stream.seed,
        channels_in=stream.input_channels,
        image_size=stream.image_size,
    )
    backbone.map_shape(stream.image_size, *([clip_frames] if stream.input == "clip" else []))
    return backbone


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
        patience=trainer.params.patience or trainer.params.epochs,
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
    source: Source,
    scratch: Path,
) -> Iterator[tuple[str, FrameStore]]:
    for split, examples_per_video in (("train", None), ("val", params.frames_per_video)):
        split_clips = clips[clips["split"] == split]
        if split_clips.empty:
            raise UserError(f"finetune: no clips in the {split} split; add videos or set `finetune.enabled: false`")
        yield (
            split,
            load_frames(split_clips, classes, video_path, source, scratch=scratch, examples_per_video=examples_per_video),
        )


def _save(backbone: Backbone, path: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.extractor.state_dict().items()}
    save_file(weights, path)
