"""What is asked and told, without workers."""

import json
import random
from itertools import pairwise

import pytest

from pipeline_lib.sweep.results import write_results
from tests.pipeline_lib.sweep.conftest import BASE
from tests.pipeline_lib.sweep.objectives import accuracy_of, rows_of

pytestmark = pytest.mark.integration


def compute(study, running):
    for row in rows_of(running.params):
        if not study.report(running, row):
            break
    return study.finish(running)


def run(study, num):
    return [compute(study, study.ask()) for _ in range(num)]


def test_the_default_comes_first_and_as_it_is(open_study):
    with open_study() as study:
        running = study.ask()
        assert running.is_default
        assert running.params == BASE
        trial = compute(study, running)
    assert (trial.number, trial.is_default, trial.value) == (0, True, accuracy_of(BASE))
    assert trial.params["learning_rate"] == 3e-4


def test_trials_come_back_as_they_were(open_study):
    with open_study() as study:
        before = run(study, 9)
        before.append(study.fail(study.ask(), "no luck"))
    with open_study() as study:
        assert study.trials() == before
    assert {trial.state for trial in before} == {"complete", "pruned", "failed"}
    assert [trial.value for trial in before if trial.state == "failed"] == [None]
    assert all(len(trial.history) < 6 for trial in before if trial.state == "pruned")


def test_a_reopened_study_chooses_as_an_unbroken_one(open_study):
    with open_study() as study:
        unbroken = [trial.params for trial in run(study, 16)]
    resumed = []
    for num in (1, 5, 2, 8):
        with open_study("in four goes") as study:
            resumed += [trial.params for trial in run(study, num)]
    assert resumed == unbroken
    assert all(one != other for one, other in pairwise(unbroken))


def test_seed_decides(open_study):
    with open_study("a", seed=0) as one, open_study("b", seed=1) as other:
        assert [trial.params for trial in run(one, 3)][1:] != [trial.params for trial in run(other, 3)][1:]


def test_what_was_interrupted_is_tried_again_and_not_listed(open_study):
    with open_study() as study:
        study.report(study.ask(), next(rows_of(BASE)))
        interrupted = study.ask().params
    with open_study() as study:
        assert study.trials() == []
        first, second = study.ask(), study.ask()
        assert (first.is_default, first.params) == (True, BASE)
        assert (second.is_default, second.params) == (False, interrupted)
        assert [compute(study, first).number, compute(study, second).number] == [2, 3]


def test_a_trial_interrupted_before_it_had_parameters_gets_some_of_its_own(open_study, monkeypatch):
    with open_study() as study:
        run(study, 1)
        monkeypatch.setattr("pipeline_lib.sweep.space.Space.suggest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            study.ask()
    monkeypatch.undo()
    with open_study() as study:
        assert len({str(trial.params) for trial in run(study, 3)}) == 3


def interrupt(*_):
    raise KeyboardInterrupt


def test_no_trial_is_begun_twice_at_once(open_study):
    with open_study() as study:
        running = [study.ask() for _ in range(3)]
        assert [trial.is_default for trial in running] == [True, False, False]
        assert running[1].params != running[2].params


def test_missing_counts_what_is_finished_and_insists_on_the_default(open_study):
    with open_study() as study:
        assert study.num_missing(3) == 3
        default, other = study.ask(), study.ask()
        compute(study, other)
        study.fail(default, "its worker died")
        assert (study.num_missing(3), study.num_missing(1)) == (2, 1)
        run(study, 1)
        assert (study.num_missing(3), study.num_missing(1)) == (1, 0)


def test_the_default_is_never_pruned(open_study):
    with open_study() as study:
        study.fail(study.ask(), "its worker died")
        waiting = study.ask()
        others = [study.ask() for _ in range(12)]
        assert waiting.is_default
        assert all(compute(study, other).state for other in others)
        hopeless = [{"epoch": epoch, "val_calibrated_loss": 9.0, "val_clip_accuracy": 0.0} for epoch in range(1, 7)]
        assert all(study.report(waiting, row) for row in hopeless)
        assert study.finish(waiting).state == "complete"


def test_a_trial_below_the_median_is_stopped_and_one_above_is_not(open_study):
    def row(epoch, accuracy):
        return {"epoch": epoch, "val_calibrated_loss": 1.0, "val_clip_accuracy": accuracy}

    with open_study() as study:
        for accuracy in (0.2, 0.4, 0.5, 0.6, 0.8):
            running = study.ask()
            assert all(study.report(running, row(epoch, accuracy + 0.1 * (epoch == 6))) for epoch in range(1, 7))
            study.finish(running)
        bad, good, equal = study.ask(), study.ask(), study.ask()
        assert [study.report(bad, row(epoch, 0.45)) for epoch in (1, 2)] == [True, False]  # the first is spared
        assert all(study.report(good, row(epoch, 0.55)) for epoch in range(1, 7))  # in the last, there is nothing to save
        assert all(study.report(equal, row(epoch, 0.5)) for epoch in range(1, 7))
        assert [study.finish(running).state for running in (bad, good, equal)] == ["pruned", "complete", "complete"]


def test_importance_finds_what_matters_though_what_is_bad_is_pruned(open_study):
    with open_study() as study:
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
        running = study.ask()
        study.report(running, {"epoch": 1, "val_calibrated_loss": rng.random(), "val_clip_accuracy": accuracy})
        running.is_pruned = False
        study.finish(running)


@pytest.mark.parametrize(
    ("accuracies", "note"),
    [([0.1, 0.5, 0.9], "3 trials are too few"), ([0.5] * 12, "all 12 trials are equally accurate")],
)
def test_no_importance_without_enough_to_tell(open_study, tmp_path, accuracies, note):
    with open_study() as study:
        finish_with(study, accuracies)
        counts = write_results(tmp_path, study)
    written = json.loads((tmp_path / "importance.json").read_text())
    assert written["importance"] == {}
    assert written["note"].startswith(note)
    assert written["trials"] == len(accuracies) == counts["trials"]
