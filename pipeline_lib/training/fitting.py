"""The epoch loop of all training: early stopping, restoring the best weights, and resuming after a kill.

The complete state is saved after each epoch: weights, best weights, optimizer, random generators and history. A run that is
killed resumes after its last complete epoch and ends with bit-identical weights.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

TrainEpoch = Callable[[int, torch.Generator], dict[str, float]]
"""Train for one epoch and return metrics. Takes the epoch's number, from 1, and the generator for the order of examples."""
Validate = Callable[[], dict[str, float]]
OnEpoch = Callable[[dict[str, Any]], None]
Generators = tuple[torch.Generator, torch.Generator | None]
"""Generators for the order of examples and for random numbers on the device. None stands for torch's global generators."""

DEVICE_SETTINGS = ("capturable", "fused")
"""Device-dependent optimizer options, which are not restored: a fit may resume on another device."""

STATE_KEYS = {"progress", "model", "optimizer", "generator", "cpu_rng", "cuda_rng"}


@dataclass
class Progress:
    """The history and best weights of a fit so far."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per epoch: `epoch` from 1, training and validation metrics, `seconds`."""
    best_epoch: int = 0
    best_value: float = math.inf
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return len(self.history)

    def is_over(self, epochs: int, patience: int) -> bool:
        """Return whether all epochs are done, or the last `patience` epochs brought no improvement."""
        return self.epoch >= epochs or (self.epoch > 0 and self.epoch - self.best_epoch >= patience)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    train_epoch: TrainEpoch,
    validate: Validate,
    epochs: int,
    patience: int,
    seed: int,
    state_path: Path | None,
    device_generator: torch.Generator | None = None,
    monitor: str = "val_loss",
    on_epoch: OnEpoch | None = None,
) -> Progress:
    """Train with early stopping and load the best weights into `model`.

    Args:
        model: trained in place.
        optimizer: optimizer of the model's weights.
        train_epoch: trains for one epoch and returns metrics.
        validate: returns validation metrics.
        epochs: maximum number of epochs.
        patience: stop after this many epochs without a new minimum of `monitor`.
        seed: seed of the generator passed to `train_epoch`.
        state_path: saved after every epoch and resumed from if present. None disables both.
        device_generator: the only other source of random numbers in `train_epoch`, restored on resuming. None stands for
            torch's global generators, which are left alone if a generator is given.
        monitor: name of the metric to minimise.
        on_epoch: called with every row of the history, including restored ones.
    """
    generator = torch.Generator().manual_seed(seed)
    generators = generator, device_generator
    progress = (_restore(state_path, model, optimizer, generators) if state_path else None) or Progress()
    for row in progress.history:
        _report(row, on_epoch)
    while not progress.is_over(epochs, patience):
        started = time.monotonic()
        epoch = progress.epoch + 1
        metrics = train_epoch(epoch, generator) | validate()
        row = {"epoch": epoch} | {name: float(value) for name, value in metrics.items()}
        _record(progress, row, model, monitor)
        row["seconds"] = round(time.monotonic() - started, 3)
        if state_path:
            _save(state_path, progress, model, optimizer, generators)
        _report(row, on_epoch)
    model.load_state_dict(progress.best_weights)
    return progress


def _record(progress: Progress, row: dict[str, Any], model: nn.Module, monitor: str) -> None:
    """Add an epoch to the history; the first one is the best so far even if its metric is not finite."""
    progress.history.append(row)
    if row[monitor] < progress.best_value or not progress.best_weights:
        progress.best_epoch, progress.best_value = row["epoch"], row[monitor]
        progress.best_weights = copy.deepcopy(model.state_dict())


def _report(row: dict[str, Any], on_epoch: OnEpoch | None) -> None:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "seconds"))
    logger.info("epoch %d: %s (%.1f s)", row["epoch"], metrics, row["seconds"])
    if on_epoch:
        on_epoch(row)


def _save(path: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, generators: Generators) -> None:
    """Write the state to a temporary file, sync it, and replace the previous state."""
    state = {
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        **_random_states(*generators),
    }
    temporary = path.with_name(f"{path.name}.draft")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _random_states(generator: torch.Generator, device_generator: torch.Generator | None) -> dict[str, Any]:
    if device_generator:
        on_device = [device_generator.get_state()]
    else:
        on_device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"generator": generator.get_state(), "cpu_rng": torch.get_rng_state(), "cuda_rng": on_device}


def _restore_random_states(state: dict[str, Any], generator: torch.Generator, device_generator: torch.Generator | None) -> None:
    """Restore the generators, except those of a device that the saved state does not cover."""
    generator.set_state(state["generator"])
    if device_generator:
        if len(state["cuda_rng"]) == 1:
            device_generator.set_state(state["cuda_rng"][0])
        return
    torch.set_rng_state(state["cpu_rng"])
    if torch.cuda.is_available() and len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generators: Generators) -> Progress | None:
    """Restore the saved state; return None if there is none, or it is damaged or of another model."""
    if not path.exists():
        return None
    state = _read(path)
    if state is None or not _fits(state, model):
        logger.warning("%s: damaged, or of another model; training starts over", path)
        return None
    model.load_state_dict(state["model"])
    device_settings = [{key: group[key] for key in DEVICE_SETTINGS if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, settings in zip(optimizer.param_groups, device_settings, strict=True):
        group.update(settings)
    _restore_random_states(state, *generators)
    progress = Progress(**state["progress"])
    logger.info("resuming after epoch %d", progress.epoch)
    return progress


def _read(path: Path) -> Any:
    """Load a file written by `torch.save`; return None if it is damaged. `torch.load` alone does not verify checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError, KeyError, pickle.UnpicklingError):
        return None


def _fits(state: Any, model: nn.Module) -> bool:
    if not isinstance(state, dict) or state.keys() != STATE_KEYS:
        return False
    shapes = {name: weight.shape for name, weight in state["model"].items()}
    return shapes == {name: weight.shape for name, weight in model.state_dict().items()}
