"""A training step as a CUDA graph. What needs a GPU is skipped without one."""

from __future__ import annotations

import gc
from contextlib import closing, nullcontext
from types import SimpleNamespace

import pytest
import torch

from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.compute.devices import fp32_precision
from pipeline_lib.compute.gpu_sharing import GPU_LOCK, own_stream, tensor_cores
from pipeline_lib.networks.dropout import draw_from
from pipeline_lib.networks.registry import MODELS, build_model
from pipeline_lib.params import TrainParams
from pipeline_lib.train.graph import GraphedStep
from pipeline_lib.train.trainer import Trainer
from pipeline_lib.training.batches import Batch
from tests.pipeline_lib.networks.sizes import split_channels
from tests.pipeline_lib.train.test_golden import make_batch

PARAMS = TrainParams(alstm_units=16, conv_alstm_units=8, head_channels=8, uniform_start=False)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def make_trainer(model, device, **changes):
    params = PARAMS.model_copy(update=changes).of(model)
    network = build_model(params, channels=split_channels(model, 12), grid=4, num_classes=5).to(device)
    return Trainer(network, torch.device(device), params, train=None, val=None)


def losses(model, *, graphed, short=True, steps=6, **changes):
    settings = reproducible(0, deterministic=True)
    with settings, own_stream(torch.device("cuda")), closing(make_trainer(model, "cuda", **changes)) as trainer:
        batches = [Batch(*(tensor.cuda() for tensor in make_batch(number))) for number in range(steps)]
        if short:
            batches[2] = Batch(*(tensor[:5] for tensor in batches[2]))
        if graphed:
            return [trainer.step(batch).tolist() for batch in batches]
        with tensor_cores():
            return [trainer._step(batch).tolist() for batch in batches]


@needs_gpu
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("run", [{"short": True, "dropout": 0.0}, {"short": False, "dropout": 0.5}], ids=["short", "dropout"])
def test_the_same_losses_as_without_a_graph(model, run):
    """Not both at once: a batch that is filled up draws other random numbers."""
    for ours, eager in zip(losses(model, graphed=True, **run), losses(model, graphed=False, **run), strict=True):
        assert ours == pytest.approx(eager, rel=1e-3)


@needs_gpu
@pytest.mark.parametrize("motion", ["map", "magnitude"])
def test_ablations_have_the_same_losses_as_without_a_graph(motion):
    for ours, eager in zip(
        *(losses("motion_conv_alstm", graphed=graphed, motion=motion) for graphed in (True, False)), strict=True
    ):
        assert ours == pytest.approx(eager, rel=1e-3)


@needs_gpu
@pytest.mark.parametrize("model", MODELS)
def test_the_same_bits_twice(model):
    assert losses(model, graphed=True) == losses(model, graphed=True)


def graphed_on_cpu(trainer):
    """Return the trainer's step to be captured, with a generator of the CPU in place of a GPU's."""
    generator = torch.Generator().manual_seed(2)
    draw_from(generator, trainer.network)
    return GraphedStep(trainer._step, trainer.network, trainer.optimizer, batch_size=16, generator=generator)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_warming_up_leaves_no_trace(steps_before):
    """Weights, moments and random numbers are as before, also where training went on from a killed one."""
    torch.manual_seed(0)
    runs = []
    for warms_up in (True, False):
        torch.manual_seed(1)
        trainer = make_trainer("alstm", "cpu")
        graphed = graphed_on_cpu(trainer)
        for number in range(steps_before):
            trainer._step(make_batch(number))
        if warms_up:
            with graphed._restored_afterwards():
                for number in range(3):
                    trainer._step(make_batch(number + 7))
        runs.append([trainer._step(make_batch(number)).tolist() for number in range(4)])
    assert runs[0] == runs[1]


def test_a_short_batch_is_filled_up_with_clips_that_count_for_nothing():
    torch.manual_seed(0)
    trainer = make_trainer("alstm", "cpu")
    trainer.network.eval()
    short = Batch(*(tensor[:5] for tensor in make_batch(0)))
    filled = graphed_on_cpu(trainer)._pad(short)
    assert [len(tensor) for tensor in filled] == [16, 16, 16]
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    results = []
    for batch in (short, filled):
        trainer.network.load_state_dict(before)
        sums = trainer._step(batch)
        results.append((sums, [parameter.grad.clone() for parameter in trainer.network.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


class FakeGraph:
    """Stands in for `torch.cuda.CUDAGraph`, and computes nothing when it is replayed."""

    def register_generator_state(self, generator):
        assert generator.device.type == "cpu"

    def replay(self):
        assert fp32_precision() == ("ieee",) * 3
        assert not GPU_LOCK._entering.locked()


@pytest.mark.parametrize("failing_call", [None, 1, 4], ids=["well", "in the warm-up", "in the capture"])
def test_warm_up_and_capture_are_alone_and_in_tf32_and_nothing_else_is(monkeypatch, failing_call):
    captures = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext(captures.append(options)))
    trainer, calls = make_trainer("mean_pool", "cpu"), []
    graphed = graphed_on_cpu(trainer)

    def step(batch):
        calls.append((fp32_precision(), GPU_LOCK._entering.locked()))
        if len(calls) == failing_call:
            raise KeyboardInterrupt
        return trainer._step(batch)

    graphed._step = step
    with pytest.raises(KeyboardInterrupt) if failing_call else nullcontext():
        graphed(make_batch(0))
        graphed(make_batch(1))
    assert calls == [(("tf32",) * 3, True)] * (failing_call or 4)
    assert fp32_precision() == ("ieee",) * 3
    assert [options["capture_error_mode"] for options in captures] == ([] if failing_call == 1 else ["thread_local"])
    assert gc.isenabled()
    with GPU_LOCK.exclusive():
        pass
    graphed.close()
    assert (graphed._graph, graphed._result) == (None, None)
