"""What is asked, reported and told, without an engine."""

import json
import random
from itertools import pairwise

import optuna
import pytest

from pipeline_lib.sweep.results import write_results
from pipeline_lib.sweep.running import run_trial
from pipeline_lib.sweep.storage import FILE
from tests.pipeline_lib.sweep.conftest import BASE
from tests.pipeline_lib.sweep.objectives import accuracy_of, follow_formula, rows_of

pytestmark = pytest.mark.integration


def compute(study, running, objective=follow_formula):
    return study.finish(running, is_pruned=run_trial(objective, study.location, running))


def run(study, num):
    return [compute(study, study.ask()) for _ in range(num)]


def rows(accuracies, loss=1.0):
    """Return an objective that reports these accuracies, epoch by epoch."""

    def objective(params, on_epoch):
        for epoch, accuracy in enumerate(accuracies, 1):
            on_epoch({"epoch": epoch, "val_calibrated_loss": loss, "val_clip_accuracy": accuracy})

    return objective


def test_the_default_comes_first_and_as_it_is(open_study):
    study = open_study()
    running = study.ask()
    assert running.is_default
    assert running.params == BASE
    trial = compute(study, running)
    assert (trial.number, trial.is_default, trial.value) == (0, True, accuracy_of(BASE))
    assert trial.params["learning_rate"] == 3e-4


def test_trials_come_back_as_they_were(open_study):
    study = open_study()
    before = run(study, 9)
    before.append(study.fail(study.ask(), "no luck"))
    study = open_study()
    assert study.trials() == before
    assert {trial.state for trial in before} == {"complete", "pruned", "failed"}
    assert [trial.value for trial in before if trial.state == "failed"] == [None]
    assert all(len(trial.history) < 6 for trial in before if trial.state == "pruned")


def test_a_reopened_study_chooses_as_an_unbroken_one(open_study):
    study = open_study()
    unbroken = [trial.params for trial in run(study, 16)]
    resumed = []
    for num in (1, 5, 2, 8):
        study = open_study("in four goes")
        resumed += [trial.params for trial in run(study, num)]
    assert resumed == unbroken
    assert all(one != other for one, other in pairwise(unbroken))


def test_seed_decides(open_study):
    one = open_study("a", seed=0)
    other = open_study("b", seed=1)
    assert [trial.params for trial in run(one, 3)][1:] != [trial.params for trial in run(other, 3)][1:]


def test_what_was_interrupted_is_tried_again_and_not_listed(open_study):
    study = open_study()
    default, other = study.ask(), study.ask()
    with pytest.raises(KeyboardInterrupt):
        run_trial(interrupt_after_an_epoch, study.location, default)
    study = open_study()
    assert study.trials() == []
    first, second = study.ask(), study.ask()
    assert (first.is_default, first.params) == (True, BASE)
    assert (second.is_default, second.params) == (False, other.params)
    assert [compute(study, first).number, compute(study, second).number] == [2, 3]


def test_a_trial_interrupted_before_it_had_parameters_gets_some_of_its_own(open_study, monkeypatch):
    study = open_study()
    run(study, 1)
    monkeypatch.setattr("optuna.Trial._suggest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.ask()
    monkeypatch.undo()
    study = open_study()
    assert len({str(trial.params) for trial in run(study, 3)}) == 3


def interrupt(*_):
    raise KeyboardInterrupt


def interrupt_after_an_epoch(params, on_epoch):
    on_epoch(next(rows_of(params)))
    raise KeyboardInterrupt


def test_a_trial_that_was_closed_meanwhile_stops_at_its_next_epoch(open_study):
    study = open_study()
    running = study.ask()
    study.close_interrupted()
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        run_trial(follow_formula, study.location, running)
    assert study.trials() == []


def test_a_failed_trial_keeps_its_epochs(open_study):
    study = open_study()
    running = study.ask()
    with pytest.raises(KeyboardInterrupt):
        run_trial(interrupt_after_an_epoch, study.location, running)
    assert study.fail(running, "no luck").history == (next(rows_of(BASE)),)


@pytest.mark.parametrize("torn", [b"{", b'{"op_code":8,"worker_id":"a-', b'{"op_code":8}'])
def test_what_a_killed_writer_left_of_a_line_is_cut_off(open_study, torn):
    study = open_study()
    before = run(study, 3)
    with (study.location.folder / FILE).open("ab") as file:
        file.write(torn)
    assert study.trials() == before
    more = run(study, 2)
    assert open_study().trials() == before + more


def test_no_trial_is_begun_twice_at_once(open_study):
    study = open_study()
    running = [study.ask() for _ in range(3)]
    assert [trial.is_default for trial in running] == [True, False, False]
    assert running[1].params != running[2].params


def test_missing_counts_what_is_finished_and_insists_on_the_default(open_study):
    study = open_study()
    assert study.num_missing(3) == 3
    default, other = study.ask(), study.ask()
    compute(study, other)
    study.fail(default, "its worker died")
    assert (study.num_missing(3), study.num_missing(1)) == (2, 1)
    run(study, 1)
    assert (study.num_missing(3), study.num_missing(1)) == (1, 0)


def test_the_default_is_never_pruned(open_study):
    study = open_study()
    study.fail(study.ask(), "its worker died")
    waiting = study.ask()
    others = [study.ask() for _ in range(12)]
    assert waiting.is_default
    assert {compute(study, other).state for other in others} == {"complete", "pruned"}
    assert compute(study, waiting, rows([0.0] * 6, loss=9.0)).state == "complete"


def test_a_trial_below_the_median_is_stopped_and_one_above_is_not(open_study):
    study = open_study()
    for accuracy in (0.2, 0.4, 0.5, 0.6, 0.8):
        assert compute(study, study.ask(), rows([accuracy] * 5 + [accuracy + 0.1])).state == "complete"
    bad, equal, good = (compute(study, study.ask(), rows([accuracy] * 6)) for accuracy in (0.45, 0.5, 0.55))
    assert (bad.state, len(bad.history)) == ("pruned", 2)  # the first is spared
    assert (good.state, len(good.history)) == ("complete", 6)  # in the last, there is nothing to save
    assert (equal.state, len(equal.history)) == ("complete", 6)


def test_importance_finds_what_matters_though_what_is_bad_is_pruned(open_study):
    study = open_study()
    assert {trial.state for trial in run(study, 25)} == {"complete", "pruned"}
    importances = study.importances()
    assert importances == study.importances()
    assert set(importances) == {*("learning_rate", "dropout", "attention_penalty", "weight_decay", "units", "layers", "scorer")}
    assert sum(importances.values()) == pytest.approx(1)
    assert max(importances, key=importances.get) == "learning_rate"
    assert importances["learning_rate"] > 0.5


def finish_with(study, accuracies):
    rng = random.Random(0)
    for accuracy in accuracies:
        compute(study, study.ask(), rows([accuracy], loss=rng.random()))


@pytest.mark.parametrize(
    ("accuracies", "note"),
    [([0.1, 0.5, 0.9], "3 trials are too few"), ([0.5] * 12, "all 12 trials are equally accurate")],
)
def test_no_importance_without_enough_to_tell(open_study, tmp_path, accuracies, note):
    study = open_study()
    finish_with(study, accuracies)
    counts = write_results(tmp_path, study)
    written = json.loads((tmp_path / "importance.json").read_text())
    assert written["importance"] == {}
    assert written["note"].startswith(note)
    assert written["trials"] == len(accuracies) == counts["trials"]
