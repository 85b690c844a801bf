"""The epoch loop of every network that is trained here: early stopping, best weights kept, resumed after a kill.

After each epoch everything that decides the next one is on disk: weights, best weights, optimizer, random generators,
history. A run killed at any moment continues from its last whole epoch and ends with the same bits as an unbroken one.
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
"""Train for one epoch, given its number from 1 and the generator to draw the order of examples from; return metrics."""
Validate = Callable[[], dict[str, float]]
OnEpoch = Callable[[dict[str, Any]], None]
Generators = tuple[torch.Generator, torch.Generator | None]
"""Of the order of examples, and of what is drawn on the device; None: torch's global ones."""

DEVICE_SETTINGS = ("capturable", "fused")
"""What an optimizer is told of the device, which may be another one when a killed fit goes on."""

STATE_KEYS = {"progress", "model", "optimizer", "generator", "cpu_rng", "cuda_rng"}


@dataclass
class Progress:
    """How far a fit has come."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """One row an epoch: `epoch` from 1, the metrics of training and validation, `seconds`."""
    best_epoch: int = 0
    best_value: float = math.inf
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def is_over(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or `patience` of them in a row brought nothing better."""
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
    """Train until the epochs are over or `monitor` has not fallen for `patience` epochs; leave the best weights in `model`.

    `state_path` is written after each epoch; if it is there at the start, the fit continues from it; with None nothing is
    written and a fit that ends is gone. `on_epoch` gets each
    row of the history, those of restored epochs included, so that whoever tracks the run always sees all of it. Random
    numbers that do not come from `train_epoch`'s generator must come from `device_generator` to be resumed, or if that is
    None from torch's global ones; where there is one, the global ones are left alone.
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
    """Add an epoch; a first epoch is the best so far whatever its value."""
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
    """Write the state under a temporary name, down to the disk, and then over the last epoch's."""
    state = {
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        **_random_states(*generators),
    }
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _random_states(generator: torch.Generator, device_generator: torch.Generator | None) -> dict[str, Any]:
    if device_generator:
        on_device = [device_generator.get_state()]
    else:
        on_device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"generator": generator.get_state(), "cpu_rng": torch.get_rng_state(), "cuda_rng": on_device}


def _restore_random_states(state: dict[str, Any], generator: torch.Generator, device_generator: torch.Generator | None) -> None:
    """Put generators back; those of a device that the fit did not run on before are left as they are seeded."""
    generator.set_state(state["generator"])
    if device_generator:
        if len(state["cuda_rng"]) == 1:
            device_generator.set_state(state["cuda_rng"][0])
        return
    torch.set_rng_state(state["cpu_rng"])
    if torch.cuda.is_available() and len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generators: Generators) -> Progress | None:
    """Load the state of a killed fit, or return None if there is none, or none that can be read and fits the model."""
    if not path.exists():
        return None
    state = _read(path)
    if state is None or not _fits(state, model):
        logger.warning("%s: damaged, or of another model; training starts over", path)
        return None
    model.load_state_dict(state["model"])
    of_this_device = [{key: group[key] for key in DEVICE_SETTINGS if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, settings in zip(optimizer.param_groups, of_this_device, strict=True):
        group.update(settings)
    _restore_random_states(state, *generators)
    progress = Progress(**state["progress"])
    logger.info("resuming after epoch %d", progress.epoch)
    return progress


def _read(path: Path) -> Any:
    """Return what `torch.save` wrote, or None if it is damaged; `torch.load` does not look at the checksums inside."""
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
