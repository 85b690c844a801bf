"""The finetune stage: the backbone learns the classes from single frames of the training part.

The head sees the average of the feature map, so that each class's evidence is a sum over cells (Zhou et al. 2016, class
activation maps): a tuned map stays local, and attention can find the actor in it.
Shape suffixes: N frames, C colour channels (3) or classes, D feature channels, H W pixels or cells.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline_lib.features.encoding import normalise
from pipeline_lib.finetune.augmentation import augment
from pipeline_lib.finetune.frames import FrameStore, load_frames
from pipeline_lib.models.backbones import Backbone, build_backbone
from pipeline_lib.models.devices import choose_device, choose_precision
from pipeline_lib.models.fitting import OnEpoch, fit
from pipeline_lib.models.reproducibility import reproducible
from pipeline_lib.params import FeaturesParams, FinetuneParams

logger = logging.getLogger(__name__)

WEIGHTS = "backbone.safetensors"
HISTORY = "history.json"
DROPOUT = 0.5
LABEL_SMOOTHING = 0.1
WARM_UP = 0.2
"""Part of all steps in which the learning rate rises to its peak; afterwards it falls along a cosine."""


class FrameClassifier(nn.Module):
    """A backbone's extractor with average pooling, dropout and one linear layer."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.extractor = backbone.extractor
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(backbone.channels, num_classes)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Return logits_NC of normalised frames."""
        features_ND = self.extractor(frames_NCHW).mean(dim=(2, 3))
        return self.head(self.dropout(features_ND))


class FrameTrainer:
    """Trains and validates a frame classifier; what `fit` calls."""

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        stores: dict[str, FrameStore],
        params: FinetuneParams,
        features: FeaturesParams,
    ) -> None:
        self.params = params
        self.backbone = backbone
        self.stores = stores
        self.device = choose_device(features.device)
        self.precision = choose_precision(features.precision, self.device)
        self.model = FrameClassifier(backbone, num_classes).to(self.device)
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)

    def train_epoch(self, epoch: int, generator: torch.Generator) -> dict[str, float]:
        """Train on frames drawn anew; return mean loss and accuracy over them."""
        self.model.train()
        store = self.stores["train"]
        indices = store.draw(self.params.frames_per_clip, generator)
        batches = indices.split(self.params.batch_size)
        totals = Totals()
        for step, batch in enumerate(batches):
            self._set_learning_rate((epoch - 1 + step / len(batches)) / self.params.epochs)
            frames_NCHW = augment(self._normalised(store, batch), generator)
            labels_N = store.labels[batch].to(self.device)
            logits_NC = self._logits(frames_NCHW)
            loss = nn.functional.cross_entropy(logits_NC, labels_N, label_smoothing=LABEL_SMOOTHING)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            totals.add(logits_NC.detach(), labels_N)
        return totals.metrics("train")

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Return mean loss and accuracy over the validation frames."""
        self.model.eval()
        store = self.stores["val"]
        totals = Totals()
        for batch in torch.arange(len(store.labels)).split(self.params.batch_size):
            totals.add(self._logits(self._normalised(store, batch)), store.labels[batch].to(self.device))
        return totals.metrics("val")

    def _normalised(self, store: FrameStore, batch: Tensor) -> Tensor:
        return normalise(store.frames[batch].to(self.device), self.backbone)

    def _logits(self, frames_NCHW: Tensor) -> Tensor:
        frames_NCHW = frames_NCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.model(frames_NCHW).float()

    def _set_learning_rate(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.learning_rate * one_cycle(progress)


class Totals:
    """Sums of cross-entropy and correct answers over frames."""

    def __init__(self) -> None:
        self.loss, self.correct, self.frames = 0.0, 0, 0

    def add(self, logits_NC: Tensor, labels_N: Tensor) -> None:
        """Count a batch."""
        self.loss += nn.functional.cross_entropy(logits_NC, labels_N, reduction="sum").item()
        self.correct += int((logits_NC.argmax(dim=1) == labels_N).sum())
        self.frames += len(labels_N)

    def metrics(self, part: str) -> dict[str, float]:
        """Return `<part>_loss` and `<part>_frame_accuracy`."""
        return {f"{part}_loss": self.loss / self.frames, f"{part}_frame_accuracy": self.correct / self.frames}


def one_cycle(progress: float) -> float:
    """Return the learning rate as a fraction of its peak, at `progress` 0..1 of all steps."""
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
    """Tune the backbone on frames of the training part and write `backbone.safetensors` and `history.json`.

    Args:
        clips: all clips, with video, class_name, part, first_frame, valid_frames.
        video_path: where the 15 fps video of an id is.
        directory: existing folder for the results.
        partial: existing folder for the state that a killed run continues from.
        params: epochs, batch size, learning rate, ...
        features: the backbone, its first weights, and the size of its frames.
        on_epoch: called with each row of the history.

    Returns:
        counts: epochs, best_epoch, train_frames, val_frames, val_frame_accuracy.

    Raises:
        ValueError: no clips to train or validate on; a video that cannot be decoded; weights that cannot be had.
    """
    classes = sorted(clips["class_name"].unique())
    stores = dict(_load_stores(clips, classes, video_path, params, features))
    with reproducible(params.seed, deterministic=False):
        backbone = build_backbone(features.backbone, features.weights, grid=features.grid, seed=features.seed)
        backbone.map_shape(features.image_size)
        trainer = FrameTrainer(backbone, len(classes), stores, params, features)
        progress = fit(
            trainer.model,
            trainer.optimizer,
            train_epoch=trainer.train_epoch,
            validate=trainer.validate,
            epochs=params.epochs,
            patience=params.patience,
            seed=params.seed,
            state_path=partial / "state.pt",
            on_epoch=on_epoch,
        )
    _save(backbone, directory / WEIGHTS)
    (directory / HISTORY).write_text(json.dumps(progress.history, indent=1), encoding="utf-8")
    best = progress.history[progress.best_epoch - 1]
    return {
        "epochs": len(progress.history),
        "best_epoch": progress.best_epoch,
        "train_frames": len(stores["train"].labels),
        "val_frames": len(stores["val"].labels),
        "val_frame_accuracy": best["val_frame_accuracy"],
    }


def _load_stores(
    clips: pd.DataFrame,
    classes: list[str],
    video_path: Callable[[str], Path],
    params: FinetuneParams,
    features: FeaturesParams,
) -> Iterator[tuple[str, FrameStore]]:
    for part, frames_per_clip in (("train", None), ("val", params.frames_per_clip)):
        clips_of_part = clips[clips["part"] == part]
        if clips_of_part.empty:
            raise ValueError(f"finetune: no clips in the {part} part; more videos, or `finetune.enabled: false`")
        yield (
            part,
            load_frames(clips_of_part, classes, video_path, image_size=features.image_size, frames_per_clip=frames_per_clip),
        )


def _save(backbone: Backbone, path: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.extractor.state_dict().items()}
    save_file(weights, path)
