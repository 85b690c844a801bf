"""What trials compute in tests: sent to worker processes, hence in a module of its own, and without torch."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.compute.engine import WorkerLostError
from pipeline_lib.errors import UserError

VAL_CLIPS = 50
EPOCHS = 6


def accuracy_of(params):
    """Learning rate decides, with its best at 1e-3; dropout and units matter a little, the rest not at all."""
    best = 1 - 0.2 * (math.log10(params.learning_rate) + 3) ** 2 - 0.05 * params.dropout
    return round(VAL_CLIPS * (best - (params.units == 128) * 0.02)) / VAL_CLIPS


def rows_of(params):
    """Return epochs that climb to the accuracy and then overfit: the last one is not the kept one."""
    accuracy = accuracy_of(params)
    for epoch in range(1, EPOCHS + 1):
        loss = 1 - accuracy + 0.1 * abs(epoch - EPOCHS + 1) + params.weight_decay / 1000
        yield {"epoch": epoch, "val_calibrated_loss": loss, "val_clip_accuracy": accuracy * min(1, epoch / (EPOCHS - 1))}


def follow_formula(params, on_epoch):
    for row in rows_of(params):
        on_epoch(row)


def tie(params, on_epoch):
    """Every trial is right as often as any other; loss falls with the learning rate."""
    on_epoch({"epoch": 1, "val_calibrated_loss": 1 - params.learning_rate, "val_clip_accuracy": 0.5})


def reject_default(params, on_epoch):
    raise UserError("the loss is nan")


@dataclass(frozen=True)
class FailAbove:
    """Parameters with a high learning rate are impossible."""

    learning_rate: float

    def __call__(self, params, on_epoch):
        if params.learning_rate > self.learning_rate:
            raise UserError(f"the loss is nan with {params.learning_rate:g}")
        follow_formula(params, on_epoch)


@dataclass(frozen=True)
class FailOnce:
    """The first trial that is past its first epoch kills its process, or raises."""

    folder: Path
    exception: type[Exception] | None = None

    def __call__(self, params, on_epoch):
        for row in rows_of(params):
            on_epoch(row)
            if self._is_first():
                if self.exception:
                    raise self.exception("out of\nmemory")
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self):
        try:
            (self.folder / "failed").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def lose_worker(params, on_epoch):
    raise WorkerLostError("its worker process died")


def train_as_one_that_logs(params, on_epoch):
    for row in rows_of(params):
        logging.getLogger("pipeline_lib.training.fitting").info("epoch %d", row["epoch"])
        on_epoch(row)
    logging.getLogger("pipeline_lib.training.fitting").warning("careful")


@dataclass(frozen=True)
class Slow:
    """Takes its time, and leaves the id of its process."""

    folder: Path
    seconds: float = 0.05

    def __call__(self, params, on_epoch):
        (self.folder / f"{os.getpid()}.pid").touch()
        for row in rows_of(params):
            time.sleep(self.seconds)
            on_epoch(row)
