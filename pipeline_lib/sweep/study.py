"""One model's Optuna study, in a journal file or database that several processes and nodes share.

The process that runs the search asks for trials and tells what came of them; those that train append their epochs. What
was written before a kill is whole, and with one trial at a time every decision depends on that and on the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline_lib.params import ModelParams
from pipeline_lib.sweep.space import Space
from pipeline_lib.sweep.storage import StudyLocation
from pipeline_lib.sweep.trials import Row, State, Trial, kept_epoch, score

DEFAULT, EPOCH, REASON = "default", "epoch ", "reason"
"""Attributes of Optuna's trials: whether it is the base's, its epochs (the number follows), why it failed."""

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


def open_study(location: StudyLocation, base: ModelParams) -> optuna.Study:
    """Open the study of a model, or begin it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        storage=location.open(),
        study_name=location.name(base.model),
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(COMPLETE_BEFORE_PRUNING, round(SPARED_SHARE * base.epochs) + 1),
    )


@dataclass(frozen=True)
class Running:
    """A trial under way."""

    number: int
    params: ModelParams
    is_default: bool


class Study:
    """Asks Optuna for trials and tells it what came of them."""

    def __init__(self, location: StudyLocation, space: Space, *, seed: int, val_clips: int) -> None:
        """Open the study, or begin it; trials that a killed run left are closed and tried again."""
        self.location, self.space, self._seed, self._val_clips = location, space, seed, val_clips
        self._study = open_study(location, space.base)
        self.close_interrupted()

    def close_interrupted(self) -> None:
        """Close the trials under way, to be tried again; whoever still trains one stops at its next epoch."""
        for trial in self._trials(TrialState.RUNNING):
            point = self.space.default_point if _is_default(trial) else trial.params
            self._study.enqueue_trial(point, {DEFAULT: _is_default(trial)})
            self._study.tell(trial.number, state=TrialState.FAIL)

    def ask(self) -> Running:
        """Begin the next trial: the default first, then those to be tried again, then what the sampler chooses."""
        self._enqueue_default()
        waiting = self._trials(TrialState.WAITING)
        # A sampler's random numbers are not stored; seeded by the trials begun before, they are those of an unbroken run.
        seed = random.Random(f"{self._seed} {len(self._trials()) - len(waiting)}").getrandbits(32)
        self._study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        is_default = bool(waiting) and _is_default(waiting[0])
        names = self.space.default_point if is_default else self.space.distributions
        trial = self._study.ask({name: self.space.distributions[name] for name in names})
        return Running(trial.number, self.space.base if is_default else self.space.resolve(trial.params), is_default)

    def _enqueue_default(self) -> None:
        present = self._trials(TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
        if not any(map(_is_default, present)):
            self._study.enqueue_trial(self.space.default_point, {DEFAULT: True})

    def finish(self, running: Running, *, is_pruned: bool) -> Trial:
        """Close a trial that came to its end, or was pruned."""
        if is_pruned:
            return self._closed(self._study.tell(running.number, state=TrialState.PRUNED))
        history = _history(self._trials()[running.number])
        return self._closed(self._study.tell(running.number, score(history, self._val_clips)))

    def fail(self, running: Running, reason: str) -> Trial:
        """Close a trial that cannot come to its end."""
        open_trial(self._study, running.number).set_user_attr(REASON, reason)
        return self._closed(self._study.tell(running.number, state=TrialState.FAIL))

    def num_missing(self, wanted: int) -> int:
        """Return how many trials are to be finished until there are `wanted`, and the default among them."""
        finished = self._trials(TrialState.COMPLETE, TrialState.PRUNED)
        return max(wanted - len(finished), 0 if any(map(_is_default, finished)) else 1)

    def trials(self) -> list[Trial]:
        """Return all that are over, by number; those that a killed run was in the middle of are not."""
        frozen = self._trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return [self._closed(trial) for trial in frozen if trial.state != TrialState.FAIL or REASON in trial.user_attrs]

    def importances(self) -> dict[str, float]:
        """Return each hyper-parameter's share in the variance of accuracy, by fANOVA; in sum 1.

        Optuna leaves out pruned trials. Here they take part with the accuracy they had when they were stopped: where bad
        learning rates are pruned, all complete trials have good ones, and it would seem not to matter.
        """
        finished = optuna.create_study(direction="maximize")
        for trial in self._trials(TrialState.COMPLETE, TrialState.PRUNED):
            value = self._closed(trial).value
            finished.add_trial(optuna.create_trial(params=trial.params, distributions=trial.distributions, value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(finished, evaluator=evaluator, params=list(self.space.distributions))
        return {name: float(share) for name, share in shares.items()}

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _closed(self, trial: FrozenTrial) -> Trial:
        history, state = _history(trial), STATES[trial.state]
        return Trial(
            number=trial.number,
            state=state,
            params=self.space.searched(self.space.base if _is_default(trial) else self.space.resolve(trial.params)),
            value=None if state == "failed" else float(kept_epoch(history)["val_clip_accuracy"]),
            history=history,
            is_default=_is_default(trial),
            reason=trial.user_attrs.get(REASON),
        )


def open_trial(study: optuna.Study, number: int) -> optuna.Trial:
    """Return a trial under way, in whichever process."""
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def report(trial: optuna.Trial, row: Row) -> None:
    """Append an epoch to a trial.

    Raises:
        optuna.exceptions.UpdateFinishedTrialError: the trial has been closed.
    """
    trial.set_user_attr(f"{EPOCH}{row['epoch']}", row)
    trial.report(row["val_clip_accuracy"], row["epoch"])


def _history(trial: FrozenTrial) -> tuple[Row, ...]:
    rows = (row for name, row in trial.user_attrs.items() if name.startswith(EPOCH))
    return tuple(sorted(rows, key=lambda row: row["epoch"]))  # a database returns them in any order


def _is_default(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get(DEFAULT))
