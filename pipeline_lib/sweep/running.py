"""Trials handed to workers, and what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue

from pipeline_lib.compute.planning import Plan
from pipeline_lib.errors import UserError
from pipeline_lib.params import ModelParams
from pipeline_lib.sweep.study import Running, Study
from pipeline_lib.sweep.trials import Row, Trial
from pipeline_lib.workers.pool import Call, Inbox, Pool, log
from pipeline_lib.workers.worker import Died, Done, Failed, Message, Said

logger = logging.getLogger(__name__)

OnEpoch = Callable[[Row], None]
Objective = Callable[[ModelParams, OnEpoch], None]
"""Trains with parameters and reports to `on_epoch`. It is sent to other processes, so it must be picklable."""
OnTrial = Callable[[Trial], None]

MOST_FAILURES = 5
"""Trials failing one after the other before it is no longer taken for bad luck."""
LONGEST_REASON = 300


def run_study(study: Study, objective: Objective, plan: Plan, trials: int, on_trial: OnTrial | None = None) -> None:
    """Bring a study to so many finished trials of `objective`, in workers at the places of `plan`.

    Raises:
        UserError: the objective raises one for the default, trials fail one after the other, or no worker is left.
    """
    for trial in study.trials():
        if on_trial:
            on_trial(trial)
    if missing := study.num_missing(trials):
        with Pool(plan.places[:missing]) as pool:
            pool.wait()
            _Search(study, objective, pool, plan, trials, on_trial).run()


class _Search:
    """Keeps every worker busy until enough trials are finished."""

    def __init__(
        self, study: Study, objective: Objective, pool: Pool, plan: Plan, trials: int, on_trial: OnTrial | None
    ) -> None:
        self._study, self._objective, self._pool, self._plan = study, objective, pool, plan
        self._trials, self._on_trial = trials, on_trial
        self._running: dict[Call, Running] = {}
        self._inbox: Inbox = SimpleQueue()
        self._failures = 0
        self._last_death = ""

    def run(self) -> None:
        while self._study.num_missing(self._trials):
            self._hand_out()
            self._check_alive()
            self._handle(*self._inbox.get())

    def _hand_out(self) -> None:
        room = min(self._plan.at_once, self._plan.slots * len(self._pool.workers))
        for _ in range(min(room, self._study.num_missing(self._trials)) - len(self._running)):
            running = self._study.ask()
            call = self._pool.submit(self._inbox, self._objective, running.params, callbacks=("on_epoch",))
            self._running[call] = running

    def _handle(self, call: Call, message: Message) -> None:
        match message:
            case Said(value=row):
                if self._study.report(self._running[call], row):
                    call.answer(None)
                else:
                    call.stop()
            case Done():
                self._failures = 0
                self._tell(self._study.finish(self._running.pop(call)))
            case Failed(error=error):
                self._fail(self._running.pop(call), error)
            case Died(reason=reason):
                self._bury(self._running.pop(call), reason)
            case logging.LogRecord():
                if message.levelno >= logging.WARNING:  # a line an epoch of every trial is too much
                    log(message)

    def _fail(self, running: Running, error: Exception) -> None:
        # A UserError is about the parameters; of any other error, out of memory above all, the kind is worth telling.
        reason = str(error) if isinstance(error, UserError) else _one_line(error)
        self._tell(self._study.fail(running, reason))
        self._failures += 1
        if running.is_default and isinstance(error, UserError):
            raise UserError(reason)
        if self._failures == MOST_FAILURES:
            raise UserError(f"the last {MOST_FAILURES} trials failed, the very last like this: {reason}")

    def _bury(self, running: Running, reason: str) -> None:
        self._last_death = f"{reason}, with {self._study.space.searched(running.params)}"
        self._tell(self._study.fail(running, reason))

    def _check_alive(self) -> None:
        if not self._running:
            death = self._last_death or self._pool.last_death
            raise UserError(
                f"no worker is left: {death}; what is finished is kept: run again, with fewer sweep.workers or "
                "without the largest of sweep.units"
            )

    def _tell(self, trial: Trial) -> None:
        result = trial.reason or f"val clip accuracy {trial.value:.4f} after {len(trial.history)} epochs"
        logger.info("trial %d: %s, %s, with %s", trial.number, trial.state, result, trial.params)
        if self._on_trial:
            self._on_trial(trial)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]
