from __future__ import annotations

from typing import Any

import pytest

from flows import plan
from flows.plan import best_training_run, engine_for, plan_fusions, plan_training_runs, side_by_side
from pipeline_lib.artifacts import Store
from pipeline_lib.params import Params


def training_runs(models: list[str], **train: object):
    return plan_training_runs(Params.model_validate({"fetch": {"kind": "hmdb51"}, "train": {"models": models, **train}}), {})


def counts(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"best_val_clip_accuracy": accuracy, "best_val_calibrated_loss": loss} for accuracy, loss in pairs]


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        (((0.8, 0.5), (0.9, 0.6), (0.7, 0.1)), "conv_alstm"),  # by accuracy
        (((0.9, 0.5), (0.9, 0.6), (0.9, 0.1)), "alstm"),  # at equal accuracy by attention, then by loss
        (((0.9, 0.5), (0.9, 0.4), (0.8, 0.1)), "conv_alstm"),
        (((0.8, 0.5), (0.8, 0.4), (0.9, 0.9)), "mean_pool"),
    ],
)
def test_the_best_of_one_split_and_seed(pairs, best):
    planned = training_runs(["alstm", "conv_alstm", "mean_pool"])
    assert planned[best_training_run(planned, counts(*pairs))].name == best


def test_models_are_compared_by_their_means_and_the_best_of_the_best_is_taken():
    planned = training_runs(["alstm", "conv_alstm"], seeds=[0, 1])
    assert [training_run.label for training_run in planned] == [
        "alstm seed 0",
        "alstm seed 1",
        "conv_alstm seed 0",
        "conv_alstm seed 1",
    ]
    lucky_once = counts((1.0, 0.1), (0.5, 0.9), (0.8, 0.3), (0.9, 0.3))
    assert planned[best_training_run(planned, lucky_once)].label == "conv_alstm seed 1"


def test_folds_are_never_compared():
    """The second fold's validation split is easier for all; the first fold's better seed is taken all the same."""
    planned = plan_training_runs(
        Params.model_validate(
            {"fetch": {"kind": "hmdb51"}, "chunk": {"fold": [1, 2]}, "train": {"models": ["alstm"], "seeds": [0, 1]}}
        ),
        {},
    )
    assert [(training_run.fold, training_run.seed) for training_run in planned] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert best_training_run(planned, counts((0.6, 0.5), (0.7, 0.5), (1.0, 0.1), (0.9, 0.1))) == 1


def params_of(**sections: Any) -> Params:
    return Params.model_validate({"fetch": {"kind": "hmdb51"}} | sections)


@pytest.mark.parametrize(
    ("sections", "number", "is_limit"),
    [
        ({}, 1, False),
        ({"train": {"seeds": [0, 1, 2]}}, 3, False),
        ({"train": {"seeds": [0, 1]}, "chunk": {"fold": [1, 2, 3]}}, 6, False),
        ({"train": {"models": ["alstm", "conv_alstm"]}}, 1, False),  # models are kinds of their own
        ({"train": {"seeds": [0, 1, 2], "workers": 2}}, 2, True),
        ({"train": {"workers": 4}}, 4, True),
    ],
)
def test_folds_and_seeds_run_side_by_side_or_as_many_as_asked(sections, number, is_limit):
    assert side_by_side(params_of(**sections)) == (number, is_limit)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Return how the engine is opened for parameters on a machine."""
    store = Store(tmp_path)

    def open_on(cores: int, gpus: int, **sections: Any) -> dict[str, Any]:
        calls: list[dict[str, Any]] = []
        monkeypatch.setattr(plan, "open_engine", lambda address, **options: calls.append({"address": address, **options}))
        monkeypatch.setattr(plan, "num_cores", lambda: cores)
        monkeypatch.setattr(plan, "count_gpus", lambda: gpus)
        engine_for(params_of(**sections), store)
        (call,) = calls
        return call

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield open_on
    store.close()


SEVERAL = {"seeds": [0, 1, 2]}
SEARCH = {"enabled": True, "models": ["alstm"]}


@pytest.mark.parametrize(
    ("cores", "gpus", "sections", "is_local_ray"),
    [
        (2, 0, {"train": SEVERAL}, True),
        (2, 0, {"chunk": {"fold": [1, 2]}}, True),
        (2, 0, {}, False),  # one training run
        (2, 0, {"train": {"models": ["alstm", "conv_alstm"]}}, False),  # each has all cores
        (1, 0, {"train": SEVERAL}, False),
        (1, 0, {"train": SEVERAL | {"workers": 2}}, True),  # as asked
        (2, 0, {"train": SEVERAL | {"workers": 1}}, False),
        (16, 1, {"train": SEVERAL}, False),  # threads of one process
        (16, 2, {}, True),
        (2, 2, {"train": SEVERAL | {"device": "cpu"}}, True),
        (2, 2, {"train": {"device": "cpu"}}, False),
        (2, 0, {"sweep": SEARCH}, True),
        (1, 0, {"sweep": SEARCH}, False),
        (2, 0, {"sweep": SEARCH | {"workers": 1}}, False),
        (2, 0, {"sweep": {"enabled": False}}, False),
    ],
)
def test_ray_starts_where_there_are_several_places_to_work(opened, cores, gpus, sections, is_local_ray):
    expected = {"address": None, "is_local_ray": is_local_ray, "num_gpus": gpus, "shipper": None}
    assert opened(cores, gpus, **sections) == expected


def test_a_cluster_is_joined_where_one_is_named(opened, monkeypatch):
    assert opened(2, 0, run={"engine": "10.0.0.5:6379"})["address"] == "10.0.0.5:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.6:6379")
    assert opened(2, 0)["address"] == "auto"  # which reads the variable
    assert opened(2, 0, run={"engine": "10.0.0.5:6379"})["address"] == "10.0.0.5:6379"


def test_models_of_the_same_fold_and_seed_are_fused():
    fusions = {
        "blind": {"members": ["lrcn", "mean_pool"], "method": "mean"},
        "two": {"members": ["alstm", "lrcn"], "method": "svm"},
    }
    params = params_of(
        chunk={"fold": [1, 2]},
        train={"models": ["alstm", "lrcn", "mean_pool"], "seeds": [0, 5]},
        evaluate={"fusions": fusions},
    )
    planned = plan_fusions(params)
    assert [fused.key for fused in planned[:4]] == [("blind", 1, 0), ("blind", 1, 5), ("blind", 2, 0), ("blind", 2, 5)]
    assert planned[1].members == [("lrcn", 1, 5), ("mean_pool", 1, 5)]
    assert planned[-1].label == "two fold 2 seed 5"
    assert [fused.attends for fused in planned] == [False] * 4 + [True] * 4
