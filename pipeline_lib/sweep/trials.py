"""What is known of a trial, and which of two is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline_lib.params import ModelParams

Row = dict[str, Any]
"""One epoch of a training: `epoch` from 1, and its metrics."""

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """A trial that is over."""

    number: int
    """From 0; numbers are missing where a killed run was in the middle of a trial, which then got another."""
    state: State
    params: dict[str, Any]
    """Value of each hyper-parameter that is searched."""
    value: float | None
    """Validation clip accuracy at the kept epoch; None for a failed trial."""
    history: tuple[Row, ...]
    """All epochs, up to the one after which a pruned trial was stopped."""
    is_default: bool = False
    """Whether these are the parameters that the sweep began with."""
    reason: str | None = None
    """Why a failed trial failed."""

    @property
    def kept(self) -> Row | None:
        """The epoch whose weights were kept."""
        return kept_epoch(self.history) if self.history else None


def kept_epoch(history: Sequence[Row]) -> Row:
    """Return the epoch whose weights training keeps, the first of equals."""
    return min(history, key=lambda row: row["val_calibrated_loss"])


def is_over(history: Sequence[Row], params: ModelParams) -> bool:
    """Return whether training ends here by itself, so that pruning would save nothing."""
    epoch = len(history)
    return epoch >= params.epochs or epoch - kept_epoch(history)["epoch"] >= params.patience


def score(history: Sequence[Row], val_clips: int) -> float:
    """Return what the search maximises: accuracy at the kept epoch, and for a lower loss less than one more clip is worth.

    A small val split has few possible accuracies, so ties are the rule; like this they are ordered for the sampler too.
    """
    kept = kept_epoch(history)
    return float(kept["val_clip_accuracy"] + 1 / (1 + kept["val_calibrated_loss"]) / (val_clips + 1))


def best_of(trials: Iterable[Trial]) -> Trial:
    """Return the complete trial with the highest accuracy; of equals, the one with the lowest loss, then the earliest."""
    complete = [trial for trial in trials if trial.state == "complete"]
    assert complete, "the default is never pruned, so that there is one"
    return min(complete, key=_rank)


def _rank(trial: Trial) -> tuple[float, float, int]:
    kept = kept_epoch(trial.history)
    return -kept["val_clip_accuracy"], kept["val_calibrated_loss"], trial.number
