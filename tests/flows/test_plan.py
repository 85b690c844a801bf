from __future__ import annotations

import pytest

from flows.plan import best_training_run, plan_training_runs
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
