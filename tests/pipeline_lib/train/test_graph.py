"""A training step as a CUDA graph. What needs a GPU is skipped without one."""

from __future__ import annotations

import pytest
import torch

from pipeline_lib.models.batches import Batch
from pipeline_lib.models.registry import build_model
from pipeline_lib.models.reproducibility import reproducible
from pipeline_lib.params import TrainParams
from pipeline_lib.train.graph import GraphedStep
from pipeline_lib.train.trainer import Trainer
from tests.pipeline_lib.train.test_golden import make_batch

PARAMS = TrainParams(alstm_units=16, conv_alstm_units=8, head_channels=8, uniform_start=False)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def make_trainer(model, device, **changes):
    params = PARAMS.model_copy(update=changes).of(model)
    network = build_model(params, channels=12, grid=4, num_classes=5).to(device)
    return Trainer(network, torch.device(device), params, train=None, val=None)


def losses(model, *, graphed, short=True, steps=6, **changes):
    with reproducible(0, deterministic=True):
        trainer = make_trainer(model, "cuda", **changes)
        step = trainer.step if graphed else trainer._step
        batches = [Batch(*(tensor.cuda() for tensor in make_batch(number))) for number in range(steps)]
        if short:
            batches[2] = Batch(*(tensor[:5] for tensor in batches[2]))
        return [step(batch).tolist() for batch in batches]


@needs_gpu
@pytest.mark.parametrize("model", ["alstm", "conv_alstm", "mean_pool"])
@pytest.mark.parametrize("run", [{"short": True, "dropout": 0.0}, {"short": False, "dropout": 0.5}], ids=["short", "dropout"])
def test_the_same_losses_as_without_a_graph(model, run):
    """Not both at once: a batch that is filled up draws other random numbers."""
    for ours, eager in zip(losses(model, graphed=True, **run), losses(model, graphed=False, **run), strict=True):
        assert ours == pytest.approx(eager, rel=1e-3)


@needs_gpu
def test_the_same_bits_twice():
    assert losses("conv_alstm", graphed=True) == losses("conv_alstm", graphed=True)


@pytest.fixture
def cpu_in_place_of_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_warming_up_leaves_no_trace(cpu_in_place_of_gpu, steps_before):
    """Weights, moments and random numbers are as before, also where training went on from a killed one."""
    torch.manual_seed(0)
    runs = []
    for warms_up in (True, False):
        torch.manual_seed(1)
        trainer = make_trainer("alstm", "cpu")
        graphed = GraphedStep(trainer._step, trainer.network, trainer.optimizer, batch_size=16)
        for number in range(steps_before):
            trainer._step(make_batch(number))
        if warms_up:
            with graphed._as_before():
                for number in range(3):
                    trainer._step(make_batch(number + 7))
        runs.append([trainer._step(make_batch(number)).tolist() for number in range(4)])
    assert runs[0] == runs[1]


def test_a_short_batch_is_filled_up_with_clips_that_count_for_nothing():
    torch.manual_seed(0)
    trainer = make_trainer("alstm", "cpu")
    trainer.network.eval()
    short = Batch(*(tensor[:5] for tensor in make_batch(0)))
    filled = GraphedStep(trainer._step, trainer.network, trainer.optimizer, batch_size=16)._fill_up(short)
    assert [len(tensor) for tensor in filled] == [16, 16, 16]
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    results = []
    for batch in (short, filled):
        trainer.network.load_state_dict(before)
        sums = trainer._step(batch)
        results.append((sums, [parameter.grad.clone() for parameter in trainer.network.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
