"""Trials, wherever there is a place to work, and what becomes of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager

import optuna

from pipeline_lib.compute.engine import Needs, WorkerLostError, run_at
from pipeline_lib.compute.needs import EndedError
from pipeline_lib.errors import UserError
from pipeline_lib.params import ModelParams
from pipeline_lib.sweep.storage import StudyLocation
from pipeline_lib.sweep.study import Running, Study, open_study, open_trial, report
from pipeline_lib.sweep.trials import Row, Trial, is_over

logger = logging.getLogger(__name__)

OnEpoch = Callable[[Row], None]
Objective = Callable[[ModelParams, OnEpoch], None]
"""Trains with parameters and reports to `on_epoch`. It is sent to other processes, so it must be picklable."""
OnTrial = Callable[[Trial], None]

MAX_FAILURES = 5
"""Trials failing one after the other before it is no longer taken for bad luck."""
LONGEST_REASON = 300


def run_study(
    study: Study, objective: Objective, at_once: int, needs: Needs, trials: int, on_trial: OnTrial | None = None
) -> None:
    """Bring a study to so many finished trials of `objective`, those of earlier runs included; the engine runs them.

    Args:
        study: asked for trials, and told what came of them.
        objective: what a trial computes.
        at_once: trials under way at once.
        needs: of a trial.
        trials: how many are to be finished.
        on_trial: called in this thread, once for each trial that is over, those of earlier runs first.

    Raises:
        UserError: the objective raises one for the default, or trials fail one after the other.
        EndedError: the run has ended.
    """
    tell = on_trial or (lambda _: None)
    for trial in study.trials():
        tell(trial)
    failures, max_failures = 0, max(MAX_FAILURES, at_once + 1)  # a node that dies fails all that are under way
    with closing(_run_trials(study, objective, at_once, needs, trials)) as ended:
        for trial, error in ended:
            tell(trial)
            if trial.is_default and isinstance(error, UserError):  # then something is wrong with all
                raise error
            failures = failures + 1 if error else 0
            if failures == max_failures:
                last = f"{trial.reason}, with {trial.params}; what is finished is kept"
                raise UserError(f"the last {failures} trials failed, the very last like this: {last}")


def _run_trials(
    study: Study, objective: Objective, at_once: int, needs: Needs, trials: int
) -> Generator[tuple[Trial, BaseException | None]]:
    """Keep trials under way until enough are finished; yield each that is over, and what it raised."""
    under_way: dict[Future[bool], Running] = {}
    with ThreadPoolExecutor(at_once, "trial") as pool:  # its threads only wait, unless the work is done in this process
        try:
            while missing := study.num_missing(trials):
                while len(under_way) < min(at_once, missing):
                    running = study.ask()
                    under_way[pool.submit(run_at, run_trial, objective, study.location, running, needs=needs)] = running
                for work in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield _close(study, under_way.pop(work), work), work.exception()
        finally:
            study.close_interrupted()


def _close(study: Study, running: Running, work: Future[bool]) -> Trial:
    """Tell the study what came of a trial."""
    error = work.exception()
    if isinstance(error, EndedError):
        raise error
    trial = study.fail(running, _reason(error)) if error else study.finish(running, is_pruned=work.result())
    result = trial.reason or f"val clip accuracy {trial.value:.4f} after {len(trial.history)} epochs"
    logger.info("trial %d: %s, %s, with %s", trial.number, trial.state, result, trial.params)
    return trial


def _reason(error: BaseException) -> str:
    """Return why a trial failed, in one line; of an unexpected error, out of memory above all, the kind is worth telling."""
    if isinstance(error, WorkerLostError):
        return f"{error}; fewer sweep.workers, or smaller sweep.units, need less memory"
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]


def run_trial(objective: Objective, location: StudyLocation, running: Running) -> bool:
    """Train with a trial's parameters, and append every epoch to the study; return whether the trial was pruned.

    Raises:
        Exception: what the objective raises.
        optuna.exceptions.UpdateFinishedTrialError: the search has closed the trial meanwhile.
    """
    trial = open_trial(open_study(location, running.params), running.number)
    history: list[Row] = []

    def on_epoch(row: Row) -> None:
        history.append(row)
        report(trial, row)
        may_prune = not running.is_default and not is_over(history, running.params)  # all are compared with the default
        if may_prune and trial.should_prune():
            raise optuna.TrialPruned

    with _without_epoch_lines():
        try:
            objective(running.params, on_epoch)
        except optuna.TrialPruned:
            return True
    return False


@contextmanager
def _without_epoch_lines() -> Iterator[None]:
    """Keep the lines that this thread logs of each epoch out of the log: of every trial, they are too many."""
    thread, epochs = threading.get_ident(), logging.getLogger("pipeline_lib.training.fitting")

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.WARNING

    epochs.addFilter(is_wanted)
    try:
        yield
    finally:
        epochs.removeFilter(is_wanted)
