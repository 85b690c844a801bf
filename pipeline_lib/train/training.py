"""The train stage: train one model on features and write its checkpoint."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline_lib.artifacts import layout
from pipeline_lib.chunk import check_trainable
from pipeline_lib.compute.determinism import deterministic_algorithms, reproducible, seeded
from pipeline_lib.compute.devices import choose_device, keep_freed_memory
from pipeline_lib.compute.gpu_sharing import own_stream
from pipeline_lib.errors import UserError
from pipeline_lib.networks.normalisation import Normalised
from pipeline_lib.params import ModelParams, num_streams
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.joined import JoinedReader, open_features, other_clips
from pipeline_lib.train.trainer import Trainer
from pipeline_lib.training.batches import ClipLoader, fits_in_memory
from pipeline_lib.training.checkpoints import Metadata, save_checkpoint
from pipeline_lib.training.fitting import Progress, fit

logger = logging.getLogger(__name__)


def train_model(
    clips: pd.DataFrame,
    feature_files: Sequence[Path],
    directory: Path | None,
    partial: Path | None,
    params: ModelParams,
    *,
    streams: int | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a model on the train split of `clips` and write `checkpoint.safetensors` and `history.json`.

    Training stops early on the calibrated cross-entropy of the val split and keeps the weights with the lowest one.

    Thread-safe: calls run concurrently on a GPU and one at a time on the CPU, with the same weights as when run alone.

    Args:
        clips: table of all clips, with their split.
        feature_files: files with the features of the train and val clips.
        directory: existing folder to write to. None writes nothing.
        partial: existing folder for the state that a killed run resumes from, to the same weights. None disables resuming.
        params: the model and its hyperparameters.
        streams: number of streams that the files hold, one after the other; default: as many as the model can read.
        on_epoch: called with each row of the history.

    Returns:
        counts of weights, epochs and clips, and the best validation metrics.

    Raises:
        UserError: a class without training clips, no validation clips, clips without features, a damaged feature file, no GPU
            although one is requested, or a loss that is not finite.
    """
    train, val = clips[clips["split"] == "train"], clips[clips["split"] == "val"]
    if val.empty:
        raise UserError("the val split has no clips, but early stopping needs some; raise chunk.val_fraction")
    check_trainable(clips, splits=("val",))
    device = choose_device(params.device, key="train.device")
    others = other_clips(clips, params.seed) if params.motion == "shuffled" else None
    with open_features(feature_files, streams or num_streams(params.model), others) as reader, _isolated(device, params):
        metadata = _describe(clips, reader, params)
        in_memory = fits_in_memory(reader, [split["clip"].tolist() for split in (train, val)], device)
        loaders = [ClipLoader(reader, split, metadata.classes, device, in_memory=in_memory) for split in (train, val)]
        with seeded(params.seed) if device.type == "cuda" else nullcontext():
            network = metadata.build()
        network.to(device)
        if isinstance(network, Normalised):
            network.measure(loaders[0].batches(params.batch_size))
        started = time.perf_counter()
        with closing(Trainer(network, device, params, *loaders)) as trainer:
            progress = _fit(trainer, partial, on_epoch)
        if not in_memory:
            waited = sum(loader.seconds_waited for loader in loaders) / (time.perf_counter() - started)
            logger.info("%s: waited for features from disk for %.0f %% of the training time", params.model, 100 * waited)
    if directory:
        save_checkpoint(directory / layout.CHECKPOINT, network, metadata)
        # Durations would make equal runs differ; the manifest records them.
        history = [{key: value for key, value in row.items() if key != "seconds"} for row in progress.history]
        (directory / layout.HISTORY).write_text(json.dumps(history, indent=2), encoding="utf-8")
    return _summary(network, progress) | {"train_clips": len(train), "val_clips": len(val)}


@contextmanager
def _isolated(device: torch.device, params: ModelParams) -> Iterator[None]:
    """Make the block's results independent of other threads: exclusive on the CPU, in its own stream on a GPU.

    On a GPU only the initial weights use a global generator, under `seeded`.
    """
    if device.type != "cuda":
        keep_freed_memory()
        with reproducible(params.seed, deterministic=params.deterministic):
            yield
    else:
        with own_stream(device), deterministic_algorithms() if params.deterministic else nullcontext():
            yield


def _describe(clips: pd.DataFrame, reader: FeatureReader | JoinedReader, params: ModelParams) -> Metadata:
    _, grid, _, channels = reader.shape[-4:]
    return Metadata(
        classes=tuple(sorted(clips["class_name"].unique())),
        channels=channels,
        grid=grid,
        params=params.recipe(),
        features=dict(reader.provenance),
        stream_channels=reader.channels if isinstance(reader, JoinedReader) else None,
    )


def _fit(trainer: Trainer, partial: Path | None, on_epoch: Callable[[dict[str, Any]], None] | None) -> Progress:
    return fit(
        trainer.network,
        trainer.optimizer,
        train_epoch=trainer.train_epoch,
        validate=trainer.validate,
        epochs=trainer.params.epochs,
        patience=trainer.params.patience,
        seed=trainer.params.seed,
        state_path=partial / "state.pt" if partial else None,
        device_generator=trainer.generator,
        monitor="val_calibrated_loss",
        on_epoch=on_epoch,
    )


def _summary(network: torch.nn.Module, progress: Progress) -> dict[str, Any]:
    best = progress.history[progress.best_epoch - 1]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_val_calibrated_loss": best["val_calibrated_loss"],
        "best_val_clip_accuracy": best["val_clip_accuracy"],
    }
