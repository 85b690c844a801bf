"""What is searched, for which model, and what Optuna's values mean."""

import json

import optuna
import pytest

from pipeline_lib.params import DEFAULT_MODELS, MODELS, ModelParams, SweepParams, TrainParams
from pipeline_lib.sweep.space import make_space

COMMON = {"learning_rate", "dropout", "weight_decay"}
SEARCHED = {
    "alstm": COMMON | {"attention_penalty", "units", "layers", "scorer"},
    "conv_alstm": COMMON | {"units", "layers", "head_channels"},
    "attention_pool": COMMON | {"units", "scorer"},
    "lrcn": COMMON | {"units", "layers"},
    "mean_pool": COMMON,
    "motion_conv_alstm": COMMON | {"units", "layers", "head_channels"},
    "motion_alstm": COMMON | {"attention_penalty", "units", "layers", "scorer"},
    "temporal_attention": COMMON | {"units"},
    "fusion_early": COMMON | {"units"},
    "fusion_late": COMMON | {"units"},
    "fusion_slow": COMMON | {"units"},
}


def draw(space, num=60):
    """Return hyper-parameters drawn at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.resolve(study.ask(space.distributions).params) for _ in range(num)]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize("model", MODELS)
def test_only_what_the_model_has_is_searched(model):
    base = TrainParams().of(model)
    space = make_space(SweepParams(), base)
    assert set(space.distributions) == SEARCHED[model]
    drawn = draw(space)
    for name in ModelParams.model_fields:
        values = {getattr(params, name) for params in drawn}
        if name in SEARCHED[model]:
            assert len(values) > 1, name
        else:
            assert values == {getattr(base, name)}


@pytest.mark.parametrize("model", MODELS)
def test_what_is_drawn_makes_overrides_of_a_parameter_file(model):
    space = make_space(SweepParams(), TrainParams().of(model))
    for params in draw(space, 20):
        overrides = json.loads(json.dumps(space.searched(params)))
        assert TrainParams(overrides={model: overrides}).of(model) == params


def test_values_stay_in_their_ranges():
    sweep = SweepParams(learning_rate=(1.234567e-4, 1.234568e-4), dropout=(0.3, 0.3), units=(96,), weight_decay=(0.0, 0.5))
    drawn = draw(make_space(sweep, TrainParams().of("alstm")))
    assert all(1.234567e-4 <= params.learning_rate <= 1.234568e-4 for params in drawn)
    assert {(params.dropout, params.units) for params in drawn} == {(0.3, 96)}
    assert max(params.weight_decay for params in drawn) > 0.4  # linear, since no logarithmic scale begins at 0
    assert sum(params.weight_decay < 0.25 for params in drawn) == pytest.approx(30, abs=12)


def test_units_are_searched_around_the_models_own():
    train = TrainParams(alstm_units=96, overrides={"conv_alstm": {"units": 1}})
    found = {name: {params.units for params in draw(make_space(SweepParams(), train.of(name)))} for name in DEFAULT_MODELS}
    shared = {48, 96, 192}
    assert found == {"alstm": shared, "attention_pool": shared, "lrcn": shared, "conv_alstm": {1, 2}, "mean_pool": {None}}


def test_a_fifth_of_a_penaltys_range_is_none():
    penalties = [params.attention_penalty for params in draw(make_space(SweepParams(), TrainParams().of("alstm")), 500)]
    assert penalties.count(0.0) == pytest.approx(100, abs=30)
    assert min(penalty for penalty in penalties if penalty) >= 1e-3


@pytest.mark.parametrize("value", [0.0, 1e-3, 0.05, 10.0])
def test_the_defaults_values_survive_optuna(value):
    space = make_space(SweepParams(), TrainParams(attention_penalty=value).of("alstm"))
    assert space.resolve(draw_point(space) | space.default_point).attention_penalty == value


def draw_point(space):
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask(space.distributions).params


def test_values_have_as_many_digits_as_a_parameter_file_shows():
    space = make_space(SweepParams(), TrainParams().of("alstm"))
    assert space.resolve(draw_point(space) | {"learning_rate": 0.00123456}).learning_rate == 0.00123


def test_a_default_outside_of_what_is_searched_is_not_among_optunas_values():
    base = TrainParams(dropout=0.9, overrides={"alstm": {"units": 17, "learning_rate": 1.23456e-3}}).of("alstm")
    space = make_space(SweepParams(units=(8, 16)), base)
    assert set(space.distributions) - set(space.default_point) == {"dropout", "units"}
    assert space.searched(base)["units"] == 17
