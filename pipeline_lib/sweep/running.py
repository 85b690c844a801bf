"""Trials handed to workers, and what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pipeline_lib.sweep.pool import Pool, Worker
from pipeline_lib.sweep.study import Running, Study
from pipeline_lib.sweep.trials import Trial
from pipeline_lib.sweep.worker import Died, Ended, Epoch, Message, Objective, Ready

logger = logging.getLogger(__name__)

OnTrial = Callable[[Trial], None]

MOST_FAILURES = 5
"""Trials failing one after the other before it is no longer taken for bad luck."""


def run_study(
    study: Study, objective: Objective, gpus: Sequence[str | None], trials: int, on_trial: OnTrial | None = None
) -> None:
    """Bring a study to so many finished trials of `objective`, with one worker for each of `gpus` (None: on the CPU).

    Raises:
        ValueError: the objective raises one for the default, trials fail one after the other, or no worker is left.
    """
    for trial in study.trials():
        if on_trial:
            on_trial(trial)
    if missing := study.num_missing(trials):
        with Pool(objective, gpus[:missing]) as pool:
            _Search(study, pool, trials, on_trial).run()


class _Search:
    """Keeps every worker busy until enough trials are finished."""

    def __init__(self, study: Study, pool: Pool, trials: int, on_trial: OnTrial | None) -> None:
        self._study, self._pool, self._trials, self._on_trial = study, pool, trials, on_trial
        self._running: dict[Worker, Running] = {}
        self._failures = 0
        self._last_death = ""

    def run(self) -> None:
        while self._study.num_missing(self._trials):
            self._check_alive()
            self._hand_out()
            for worker, message in self._pool.receive():
                self._handle(worker, message)

    def _hand_out(self) -> None:
        idle = [worker for worker in self._pool.workers if worker.is_ready and worker not in self._running]
        for worker in idle[: self._study.num_missing(self._trials) - len(self._running)]:
            running = self._running[worker] = self._study.ask()
            worker.send(running.params)

    def _handle(self, worker: Worker, message: Message) -> None:
        match message:
            case Ready():
                worker.is_ready = True
            case Epoch():
                worker.send(self._study.report(self._running[worker], message.row))
            case Ended(error=None):
                self._failures = 0
                self._tell(self._study.finish(self._running.pop(worker)))
            case Ended():
                self._fail(self._running.pop(worker), str(message.error))
            case Died():
                self._bury(self._running.pop(worker, None), message.reason)
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)

    def _fail(self, running: Running, reason: str) -> None:
        self._tell(self._study.fail(running, reason))
        self._failures += 1
        if running.is_default:
            raise ValueError(reason)
        if self._failures == MOST_FAILURES:
            raise ValueError(f"the last {MOST_FAILURES} trials failed, the very last like this: {reason}")

    def _bury(self, running: Running | None, reason: str) -> None:
        self._last_death = reason
        if running:
            self._last_death = f"{reason}, with {self._study.space.searched(running.params)}"
            self._tell(self._study.fail(running, reason))

    def _check_alive(self) -> None:
        if not self._pool.workers:
            raise ValueError(
                f"no worker is left: {self._last_death}; what is finished is kept: run again, with fewer sweep.workers or "
                "without the largest of sweep.units"
            )

    def _tell(self, trial: Trial) -> None:
        result = trial.reason or f"val clip accuracy {trial.value:.4f} after {len(trial.history)} epochs"
        logger.info("trial %d: %s, %s, with %s", trial.number, trial.state, result, trial.params)
        if self._on_trial:
            self._on_trial(trial)
