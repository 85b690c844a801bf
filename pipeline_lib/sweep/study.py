"""One model's Optuna study, in an SQLite file in the workspace.

One process alone reads and writes it, the one that hands out the trials. What a killed run has written is whole, and with one
worker every decision depends on that and on the seed.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline_lib.params import ModelParams
from pipeline_lib.sweep.importance import weigh
from pipeline_lib.sweep.space import Space
from pipeline_lib.sweep.trials import Row, State, Trial, kept_epoch, score

FILE = "study.db"
DEFAULT, HISTORY, REASON = "default", "history", "reason"
"""Attributes of Optuna's trials: whether it is the base's, its epochs, why it failed."""

RANDOM_TRIALS = 10
"""Trials before TPE has seen enough to choose by (Optuna's default)."""
COMPLETE_BEFORE_PRUNING = 5
"""Trials whose median a trial must reach to go on (Optuna's default)."""
SPARED_SHARE = 0.2
"""Share of the epochs before which no trial is pruned: small learning rates and strong dropout begin slowly."""

STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass
class Running:
    """A trial under way."""

    trial: optuna.Trial
    params: ModelParams
    is_default: bool
    history: list[Row] = field(default_factory=list)
    is_pruned: bool = False

    @property
    def is_over(self) -> bool:
        """Whether training ends here by itself, so that pruning would save nothing."""
        epoch = len(self.history)
        return epoch >= self.params.epochs or epoch - kept_epoch(self.history)["epoch"] >= self.params.patience


class Study:
    """Asks Optuna for trials and tells it what came of them; a context manager that closes the file."""

    def __init__(self, folder: Path, name: str, space: Space, *, seed: int, val_clips: int) -> None:
        """Open the study of this name in `folder`, or begin it; trials that a killed run left are closed and tried again."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self.space, self._seed, self._val_clips = space, seed, val_clips
        self._storage = optuna.storages.RDBStorage(
            f"sqlite:///{FILE}", engine_kwargs={"creator": lambda: _connect(folder / FILE)}
        )
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(COMPLETE_BEFORE_PRUNING, round(SPARED_SHARE * space.base.epochs) + 1),
        )
        self._close_interrupted()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _close_interrupted(self) -> None:
        for trial in self._trials(TrialState.RUNNING):
            is_default = bool(trial.user_attrs.get(DEFAULT))
            self._study.enqueue_trial(self.space.default_point if is_default else trial.params, {DEFAULT: is_default})
            self._study.tell(trial.number, state=TrialState.FAIL)

    def ask(self) -> Running:
        """Begin the next trial: the default first, then those to be tried again, then what the sampler chooses."""
        self._enqueue_default()
        # A sampler's random numbers are not stored; seeded by the trials begun before, they are those of an unbroken run.
        num_begun = len(self._trials()) - len(self._trials(TrialState.WAITING))
        seed = random.Random(f"{self._seed} {num_begun}").getrandbits(32)
        self._study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        trial = self._study.ask()
        is_default = bool(trial.user_attrs.get(DEFAULT))
        params = self.space.suggest_default(trial) if is_default else self.space.suggest(trial)
        return Running(trial, params, is_default)

    def _enqueue_default(self) -> None:
        present = self._trials(TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
        if not any(trial.user_attrs.get(DEFAULT) for trial in present):
            self._study.enqueue_trial(self.space.default_point, {DEFAULT: True})

    def report(self, running: Running, row: Row) -> bool:
        """Take note of an epoch; return whether the trial goes on. The default always does: all are compared with it."""
        running.history.append(row)
        running.trial.report(row["val_clip_accuracy"], row["epoch"])
        running.is_pruned = not running.is_default and not running.is_over and running.trial.should_prune()
        return not running.is_pruned

    def finish(self, running: Running) -> Trial:
        """Close a trial that came to its end, or was stopped when `report` said so."""
        running.trial.set_user_attr(HISTORY, running.history)
        if running.is_pruned:
            return self._closed(self._study.tell(running.trial, state=TrialState.PRUNED))
        return self._closed(self._study.tell(running.trial, score(running.history, self._val_clips)))

    def fail(self, running: Running, reason: str) -> Trial:
        """Close a trial that cannot come to its end."""
        running.trial.set_user_attr(HISTORY, running.history)
        running.trial.set_user_attr(REASON, reason)
        return self._closed(self._study.tell(running.trial, state=TrialState.FAIL))

    def num_missing(self, wanted: int) -> int:
        """Return how many trials are to be finished until there are `wanted`, and the default among them."""
        finished = self._trials(TrialState.COMPLETE, TrialState.PRUNED)
        has_default = any(trial.user_attrs.get(DEFAULT) for trial in finished)
        return max(wanted - len(finished), 0 if has_default else 1)

    def trials(self) -> list[Trial]:
        """Return all that are over, by number; those that a killed run was in the middle of are not."""
        frozen = self._trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return [self._closed(trial) for trial in frozen if trial.state != TrialState.FAIL or REASON in trial.user_attrs]

    def importances(self) -> dict[str, float]:
        """Return how much each hyper-parameter mattered, as `weigh` has it."""
        points = self._trials(TrialState.COMPLETE, TrialState.PRUNED)
        return weigh([self._closed(point) for point in points], points, self.space.names)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _closed(self, trial: FrozenTrial) -> Trial:
        is_default, history = bool(trial.user_attrs.get(DEFAULT)), tuple(trial.user_attrs[HISTORY])
        state = STATES[trial.state]
        assert trial.duration is not None
        return Trial(
            number=trial.number,
            state=state,
            params=self.space.searched(self.space.base if is_default else self.space.resolve(trial.params)),
            value=None if state == "failed" else float(kept_epoch(history)["val_clip_accuracy"]),
            history=history,
            seconds=trial.duration.total_seconds(),
            is_default=is_default,
            reason=trial.user_attrs.get(REASON),
        )


def _connect(path: Path) -> Any:
    """Open the file so that a commit need not wait for the disk: 7 ms an epoch instead of 36, and still whole after a kill."""
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = normal")
    return connection
