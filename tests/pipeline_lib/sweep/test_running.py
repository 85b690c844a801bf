"""Trials in worker processes: what becomes of them, of workers that die, and of a parent that stops."""

import json
import logging
import os
import threading
import time

import pandas as pd
import psutil
import pytest

from pipeline_lib.sweep.results import write_results
from pipeline_lib.sweep.running import MOST_FAILURES, run_study
from tests.pipeline_lib.sweep import objectives
from tests.pipeline_lib.sweep.conftest import BASE, processes
from tests.pipeline_lib.sweep.objectives import DieOnce, FailAbove, Slow, accuracy_of, always_die, follow_formula

pytestmark = pytest.mark.integration


def search(open_study, objective, trials, workers=1):
    """Run a study and return what was told of its trials."""
    told = []
    with open_study() as study:
        run_study(study, objective, processes(workers), trials, told.append)
        assert sorted(told, key=lambda trial: trial.number) == study.trials()
    return told


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def worker_pids(folder):
    return [int(path.stem) for path in folder.glob("*.pid")]


def test_best_is_the_best_and_everything_is_counted(open_study, tmp_path):
    told = search(open_study, follow_formula, 14, workers=2)
    with open_study() as study:
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
    told = search(open_study, objectives.tie, 6)
    with open_study() as study:
        counts = write_results(tmp_path, study)
    assert counts["best_trial"] == max(told, key=lambda trial: trial.params["learning_rate"]).number


def test_more_trials_continue_and_all_are_told_again(open_study):
    first = search(open_study, follow_formula, 3)
    second = search(open_study, follow_formula, 5)
    assert second[:3] == first
    assert [trial.number for trial in second] == [0, 1, 2, 3, 4]
    assert search(open_study, always_die, 5) == second  # nothing is computed
    assert search(open_study, always_die, 2) == second


def test_trials_are_told_in_the_callers_thread(open_study):
    threads = []
    with open_study() as study:
        run_study(study, follow_formula, processes(2), 3, lambda trial: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()] * 3


def test_workers_work_at_once(open_study, tmp_path):
    search(open_study, Slow(tmp_path), 6, workers=2)
    assert len(worker_pids(tmp_path)) == 2


@pytest.mark.parametrize(("exception", "reason"), [(None, "SIGKILL, as when memory runs out"), (MemoryError, "out of memory")])
def test_a_worker_that_dies_loses_its_trial_and_no_more(open_study, tmp_path, exception, reason):
    told = search(open_study, DieOnce(tmp_path, exception), 6, workers=2)
    (failed,) = [trial for trial in told if trial.state == "failed"]
    assert reason in failed.reason
    assert (failed.value, len(failed.history)) == (None, 1)
    assert sum(trial.state != "failed" for trial in told) == 6
    (default,) = [trial for trial in told if trial.is_default and trial.state == "complete"]
    assert default.params["learning_rate"] == BASE.learning_rate


def test_without_a_worker_left_the_error_says_why_and_what_is_finished_stays(open_study):
    search(open_study, follow_formula, 2)
    told = []
    with open_study() as study, pytest.raises(ValueError, match=r"no worker is left: .*SIGKILL.*'units': .*sweep\.workers"):
        run_study(study, always_die, processes(2), 6, told.append)
    assert [trial.state for trial in told] == ["complete", "complete", "failed", "failed"]
    assert len(search(open_study, follow_formula, 6)) == 8


def test_what_is_wrong_with_the_default_is_the_users_to_mend(open_study):
    with open_study() as study, pytest.raises(ValueError, match=r"^the loss is nan$"):
        run_study(study, objectives.reject_default, processes(1), 3)


def test_parameters_that_fail_are_set_aside(open_study, tmp_path):
    told = search(open_study, FailAbove(2e-3), 12)
    failed = [trial for trial in told if trial.state == "failed"]
    assert failed
    assert all(trial.params["learning_rate"] > 2e-3 and "loss is nan" in trial.reason for trial in failed)
    with open_study() as study:
        assert write_results(tmp_path, study)["failed"] == len(failed)
    assert pd.read_csv(tmp_path / "trials.csv")["reason"].notna().sum() == len(failed)


def test_trials_that_all_fail_end_the_search(open_study):
    search(open_study, follow_formula, 1)
    told = []
    with open_study() as study, pytest.raises(ValueError, match=f"last {MOST_FAILURES} trials failed.*loss is nan"):
        run_study(study, FailAbove(0.0), processes(1), 20, told.append)
    assert [trial.state for trial in told] == ["complete"] + ["failed"] * MOST_FAILURES


def test_an_interrupt_ends_the_workers_at_once(open_study, tmp_path):
    def interrupt(trial):
        raise KeyboardInterrupt

    with open_study() as study, pytest.raises(KeyboardInterrupt):
        run_study(study, Slow(tmp_path), processes(2), 9, interrupt)
    assert len(worker_pids(tmp_path)) == 2
    assert not any(psutil.pid_exists(pid) for pid in worker_pids(tmp_path))
    assert sum(trial.state == "complete" for trial in search(open_study, follow_formula, 3)) == 3


def test_workers_warn_through_the_parents_log(open_study, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        search(open_study, objectives.warn, 1)
    careful, gap = caplog.records
    assert (careful.name, careful.getMessage()) == ("pipeline_lib.train", "careful")
    assert "UserWarning: mind the gap" in gap.getMessage()
    assert careful.process != os.getpid()
    assert capfd.readouterr() == ("", "")
