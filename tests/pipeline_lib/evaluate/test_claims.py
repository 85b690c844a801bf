"""Whether ConvALSTM attends better, from totals made by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.claims import attention_claims
from pipeline_lib.evaluate.comparison import TrainingRun

VIDEOS = [f"v{number}" for number in range(40)]


def make_run(model, gains_V, *, measure="insertion", seed=0, fold=1, uniform=0.2, frames=1):
    """Return a run whose map is so far ahead of the uniform map's on each video."""
    tables = [
        pd.DataFrame(
            {
                "map": name,
                "measure": measure,
                "video": VIDEOS,
                "class_name": "run",
                "group": VIDEOS,
                "total": total_V,
                "frames": frames,
            }
        )
        for name, total_V in (("model", uniform * frames + np.asarray(gains_V)), ("uniform", uniform * frames))
    ]
    return TrainingRun(model, fold, seed, {}, pd.DataFrame(), pd.concat(tables, ignore_index=True))


def claims(*runs):
    return {claim.measure: claim for claim in attention_claims(runs)}


@pytest.mark.parametrize(
    ("measure", "ahead", "holds"),
    [("insertion", 0.1, True), ("insertion", -0.1, False), ("deletion", -0.1, True), ("deletion", 0.1, False)],
)
def test_the_direction_of_the_measure_decides(measure, ahead, holds):
    noise_V = np.random.default_rng(0).normal(0, 0.3, len(VIDEOS))
    conv = make_run("conv_alstm", noise_V + ahead, measure=measure)
    claim = claims(make_run("alstm", noise_V, measure=measure), conv)[measure]
    assert (claim.first, claim.second, claim.num_videos, claim.holds) == ("conv_alstm", "alstm", 40, holds)
    # paired: what makes a video hard for both is no noise
    assert claim.difference == pytest.approx(ahead)
    assert claim.interval == pytest.approx([ahead, ahead])


def test_no_answer_where_the_interval_holds_zero():
    gains_V = np.random.default_rng(0).normal(0, 0.3, len(VIDEOS))
    claim = claims(make_run("alstm", gains_V), make_run("conv_alstm", gains_V[::-1]))["insertion"]
    assert claim.interval[0] < 0 < claim.interval[1]
    assert claim.holds is None


def test_a_model_that_is_unsure_from_the_start_gains_nothing_by_it():
    sure = make_run("alstm", np.full(40, -0.1), measure="deletion", uniform=0.8)
    unsure = make_run("conv_alstm", np.full(40, -0.1), measure="deletion", uniform=0.3)
    claim = claims(sure, unsure)["deletion"]
    assert (claim.difference, claim.holds) == (pytest.approx(0), None)


def test_cells_meet_those_of_their_own_split_and_seed():
    alstm = [make_run("alstm", np.full(40, gain), seed=seed, fold=fold) for fold, seed, gain in ((1, 0, 0.1), (1, 1, 0.2))]
    conv = [make_run("conv_alstm", np.full(40, gain), seed=seed, fold=fold) for fold, seed, gain in ((1, 1, 0.3), (2, 0, 9))]
    claim = claims(*alstm, *conv)["insertion"]
    assert claim.difference == pytest.approx(0.3 - 0.2)


def test_videos_weigh_as_many_frames_as_they_have():
    frames_V = np.array([1] * 20 + [9] * 20)
    conv = make_run("conv_alstm", np.where(frames_V == 9, 9 * 0.5, 0), measure="pointing", frames=frames_V)
    alstm = make_run("alstm", np.zeros(40), measure="pointing", frames=frames_V)
    assert claims(alstm, conv)["pointing"].difference == pytest.approx(0.5 * 0.9)


def test_no_claim_without_both_models_or_a_better_direction():
    flat = np.zeros(40)
    lrcn = TrainingRun("lrcn", 1, 0, {}, pd.DataFrame())
    assert claims(make_run("alstm", flat), make_run("attention_pool", flat), lrcn) == {}
    assert claims(*(make_run(model, flat, measure="entropy") for model in ("alstm", "conv_alstm"))) == {}


def test_intervals_of_several_claims_hold_together():
    """Each of two claims alone has a narrower interval than beside the other."""
    rng = np.random.default_rng(0)
    runs = {}
    for measure in ("insertion", "deletion"):
        runs[measure] = [make_run(model, rng.normal(0, 0.3, 40), measure=measure) for model in ("alstm", "conv_alstm")]
    alone = claims(*runs["insertion"])["insertion"]
    both = [
        replace(first, maps=pd.concat([first.maps, second.maps]))
        for first, second in zip(runs["insertion"], runs["deletion"], strict=True)
    ]
    beside = claims(*both)["insertion"]
    assert (alone.num_claims, beside.num_claims) == (1, 2)
    assert beside.interval[0] < alone.interval[0] < alone.interval[1] < beside.interval[1]
    assert beside.num_groups == 40


def test_motion_is_compared_with_the_same_model_without_it():
    noise_V = np.random.default_rng(0).normal(0, 0.3, len(VIDEOS))
    runs = [
        make_run(model, noise_V + ahead, measure="tube_iou")
        for model, ahead in (("motion_conv_alstm", 0.2), ("conv_alstm", 0.1), ("alstm", 0.0))
    ]
    found = {(claim.first, claim.second): claim for claim in attention_claims(runs)}
    assert list(found) == [("conv_alstm", "alstm"), ("motion_conv_alstm", "conv_alstm")]
    assert [claim.difference for claim in found.values()] == pytest.approx([0.1, 0.1])
    assert [(claim.holds, claim.num_claims) for claim in found.values()] == [(True, 2)] * 2
