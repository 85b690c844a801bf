"""Dropout from a generator of its own."""

from __future__ import annotations

import pytest
import torch

from pipeline_lib.networks.dropout import Dropout, draw_from
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import MODELS, TrainParams
from tests.pipeline_lib.networks.sizes import split_channels

PARAMS = TrainParams(alstm_units=16, conv_alstm_units=8, head_channels=8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_generator_gives_the_numbers_that_the_global_one_gives() -> None:
    """Each way of drawing, in the same order."""
    ours, theirs = Dropout(0.4), Dropout(0.4)
    ours.generator = generator(3)
    torch.manual_seed(3)
    x = torch.rand(5, 7, generator=generator(0))
    for dropout in (ours, theirs):
        dropout.drawn = (dropout(x), dropout.draw(x, (2, 3)), *(dropout.steps(x, (4, 5, 7))(x) for _ in range(2)))
    assert all(torch.equal(one, other) for one, other in zip(ours.drawn, theirs.drawn, strict=True))


def test_what_is_kept_is_made_larger() -> None:
    factors = Dropout(0.2).factors(torch.ones(1), (100_000,))
    assert set(factors.tolist()) == {0.0, 1.25}
    assert factors.mean().item() == pytest.approx(1, abs=0.01)


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    x = torch.rand(4)
    for dropout in (Dropout(0.5).eval(), Dropout(0.0)):
        dropout.generator = generator(0)
        assert dropout(x) is x
        assert torch.equal(dropout.draw(x, (2,)), torch.ones(2))
        assert torch.equal(dropout.generator.get_state(), generator(0).get_state())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scorer", ["pooled", "local"])
def test_a_network_draws_from_its_generator_alone(model: str, scorer: str) -> None:
    params = PARAMS.model_copy(update={"scorer": scorer}).of(model)
    network = build_model(params, channels=split_channels(model, 12), grid=3, num_classes=5)
    features, valid = torch.rand(2, 6, 3, 3, 12), torch.tensor([6, 3])
    outputs = []
    for seed in (1, 1, 2):
        draw_from(generator(seed), network)
        before = torch.get_rng_state()
        outputs.append(network(features, valid)[0])
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
