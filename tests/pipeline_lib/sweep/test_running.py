"""Trials run by the engine: what becomes of them, of those that fail, and of a search that stops."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator

import optuna
import pandas as pd
import pytest

from pipeline_lib.compute.engine import Needs, cancel_work, open_engine
from pipeline_lib.compute.needs import EndedError
from pipeline_lib.sweep.results import write_results
from pipeline_lib.sweep.running import MAX_FAILURES, run_study
from tests.pipeline_lib.sweep import objectives
from tests.pipeline_lib.sweep.conftest import BASE, search
from tests.pipeline_lib.sweep.objectives import FailAbove, FailOnce, Slow, accuracy_of, follow_formula

pytestmark = pytest.mark.integration


def test_best_is_the_best_and_everything_is_counted(open_study, tmp_path):
    study = open_study()
    told = search(study, follow_formula, 14, at_once=2)
    counts = write_results(tmp_path, study)
    complete = [trial for trial in told if trial.state == "complete"]
    best = max(complete, key=lambda trial: trial.value)
    assert counts["best_val_clip_accuracy"] == best.value > counts["default_val_clip_accuracy"] == accuracy_of(BASE)
    assert json.loads((tmp_path / "best.json").read_text()) == told_by_number(told)[counts["best_trial"]].params
    pruned = [trial for trial in told if trial.state == "pruned"]
    assert (counts["trials"], counts["pruned"], counts["failed"]) == (14, len(pruned), 0)
    assert pruned
    table = pd.read_csv(tmp_path / "trials.csv")
    assert table["trial"].tolist() == list(range(14))
    assert (table["epochs"] < objectives.EPOCHS).sum() == len(pruned)
    assert table["val_clip_accuracy"].tolist() == pytest.approx([told_by_number(told)[n].value for n in range(14)])
    assert json.loads((tmp_path / "importance.json").read_text())["trials"] == 14


def told_by_number(told):
    return {trial.number: trial for trial in told}


def test_of_equally_accurate_trials_the_one_with_the_lowest_loss_is_best(open_study, tmp_path):
    study = open_study()
    told = search(study, objectives.tie, 6)
    counts = write_results(tmp_path, study)
    assert counts["best_trial"] == max(told, key=lambda trial: trial.params["learning_rate"]).number


def test_more_trials_continue_and_all_are_told_again(open_study):
    first = search(open_study(), follow_formula, 3)
    second = search(open_study(), follow_formula, 5)
    assert second[:3] == first
    assert [trial.number for trial in second] == [0, 1, 2, 3, 4]
    assert search(open_study(), objectives.lose_worker, 5) == second  # nothing is computed
    assert search(open_study(), objectives.lose_worker, 2) == second


def test_trials_are_told_in_the_callers_thread(open_study):
    threads = []
    run_study(open_study(), follow_formula, 2, Needs(), 3, lambda trial: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()] * 3


def test_no_more_trials_are_under_way_than_are_missing(open_study, tmp_path):
    assert [trial.number for trial in search(open_study(), Slow(tmp_path), 1, at_once=4)] == [0]


def test_what_fails_unexpectedly_fails_its_trial_and_no_more(open_study, tmp_path):
    told = search(open_study(), FailOnce(tmp_path, MemoryError), 6, at_once=2)
    (failed,) = [trial for trial in told if trial.state == "failed"]
    assert failed.reason == "MemoryError: out of memory"
    assert (failed.value, len(failed.history)) == (None, 1)
    assert sum(trial.state != "failed" for trial in told) == 6
    (default,) = [trial for trial in told if trial.is_default and trial.state == "complete"]
    assert default.params["learning_rate"] == BASE.learning_rate


def test_what_is_wrong_with_the_default_is_the_users_to_mend(open_study):
    with pytest.raises(ValueError, match=r"^the loss is nan$"):
        search(open_study(), objectives.reject_default, 3)


def test_parameters_that_fail_are_set_aside(open_study, tmp_path):
    study = open_study()
    told = search(study, FailAbove(2e-3), 12)
    failed = [trial for trial in told if trial.state == "failed"]
    assert failed
    assert all(trial.params["learning_rate"] > 2e-3 and "loss is nan" in trial.reason for trial in failed)
    assert write_results(tmp_path, study)["failed"] == len(failed)
    assert pd.read_csv(tmp_path / "trials.csv")["reason"].notna().sum() == len(failed)


@pytest.mark.parametrize(
    ("objective", "reason"),
    [(FailAbove(0.0), "loss is nan with.*'units'"), (objectives.lose_worker, r"process died; fewer sweep\.workers")],
)
def test_trials_that_all_fail_end_the_search_and_what_is_finished_stays(open_study, objective, reason):
    search(open_study(), follow_formula, 1)
    told = []
    with pytest.raises(ValueError, match=f"^the last {MAX_FAILURES} trials failed.*{reason}"):
        run_study(open_study(), objective, 1, Needs(), 20, told.append)
    assert [trial.state for trial in told] == ["complete"] + ["failed"] * MAX_FAILURES
    assert len(search(open_study(), follow_formula, 3)) == MAX_FAILURES + 3


def test_a_node_that_takes_all_its_trials_along_does_not_end_the_search(open_study):
    at_once, told = MAX_FAILURES + 3, []
    with pytest.raises(ValueError, match=f"^the last {at_once + 1} trials failed"):
        run_study(open_study(), objectives.lose_worker, at_once, Needs(), 20, told.append)


def test_an_interrupt_stops_the_trials_under_way_and_they_are_tried_again(open_study):
    study, told, stopped = open_study(), [], []

    def interrupt(trial):
        told.append(trial)
        raise KeyboardInterrupt

    def wait_but_for_the_default(params, on_epoch):
        deadline = time.monotonic() + 10
        while params != BASE and study._trials(optuna.trial.TrialState.RUNNING) and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            follow_formula(params, on_epoch)
        except optuna.exceptions.UpdateFinishedTrialError:
            stopped.append(params)

    with pytest.raises(KeyboardInterrupt):
        run_study(study, wait_but_for_the_default, 2, Needs(), 9, interrupt)
    assert [trial.is_default for trial in study.trials()] == [True]
    assert len(stopped) == 1
    again = search(open_study(), follow_formula, 3)
    assert again[0] == told[0]
    assert again[1].params == study.space.searched(stopped[0])


def test_the_end_of_a_run_is_no_failure_of_its_trials(open_study, tmp_path):
    study = open_study()
    with open_engine(), pytest.raises(EndedError):
        run_study(study, follow_formula, 1, Needs(), 9, lambda trial: cancel_work())
    assert [trial.state for trial in study.trials()] == ["complete"]
    assert [trial.state for trial in search(open_study(), follow_formula, 3)] == ["complete"] * 3


def test_of_the_lines_of_each_epoch_warnings_alone_are_logged(open_study, caplog):
    with caplog.at_level(logging.INFO):
        search(open_study(), objectives.train_as_one_that_logs, 1)
    assert [record.message for record in caplog.records if record.name == "pipeline_lib.training.fitting"] == ["careful"]
    assert logging.getLogger("pipeline_lib.training.fitting").filters == []


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One local Ray of two cores for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline_lib.compute.ray_engine.num_cores", lambda: 2)
        with open_engine(is_local_ray=True):
            yield


@pytest.mark.usefixtures("ray")
class TestOnRay:
    def test_trials_run_in_several_processes_and_are_pruned_by_each_others_epochs(self, open_study, tmp_path):
        told = search(open_study(), Slow(tmp_path, seconds=0.02), 14, at_once=2)
        pids = {int(path.stem) for path in tmp_path.glob("*.pid")}
        assert len(pids) == 2
        assert os.getpid() not in pids
        pruned = [trial for trial in told if trial.state == "pruned"]
        assert pruned
        assert all(len(trial.history) < objectives.EPOCHS for trial in pruned)

    def test_a_killed_worker_fails_its_trial_and_the_search_goes_on(self, open_study, tmp_path):
        told = search(open_study(), FailOnce(tmp_path), 4, at_once=2)
        (failed,) = [trial for trial in told if trial.state == "failed"]
        assert "its worker process died" in failed.reason
        assert len(failed.history) == 1
        assert sum(trial.state != "failed" for trial in told) == 4
