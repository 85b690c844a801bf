"""Gradients computed once for all frames are those that autograd adds up frame by frame, and keep nothing alive."""

# B batch, T frames of a clip, K grid side, D channels, U units, C classes

import gc
import weakref

import pytest
import torch

from pipeline_lib.networks import attention, lstm, motion
from pipeline_lib.networks.deferred import Deferred, gradient_of_linear
from tests.pipeline_lib.networks.test_models import small_model, some_features

pytestmark = pytest.mark.usefixtures("single_thread")

VARIANTS = {
    "pooled": ("alstm", {"scorer": "pooled"}),
    "local": ("alstm", {"scorer": "local"}),
    "2 layers": ("alstm", {"scorer": "local", "layers": 2}),
    "not carried": ("alstm", {"scorer": "pooled", "carry_state": False}),
    "lrcn": ("lrcn", {"layers": 2}),
    "flat head": ("conv_alstm", {"head_channels": None}),
    "convolutional head": ("conv_alstm", {"head_channels": 5}),
    "maps, 2 layers": ("conv_alstm", {"layers": 2}),
    "maps, not carried": ("conv_alstm", {"carry_state": False}),
    "motion": ("motion_alstm", {}),
    "motion, pooled": ("motion_alstm", {"scorer": "pooled", "motion": "magnitude"}),
    "motion, maps": ("motion_conv_alstm", {"layers": 2}),
}


class Plain(Deferred):
    """The same layer with its gradient left to autograd."""

    def __init__(self, weight, offsets_T, gradient):
        self.weight, self._learns, self._offsets = weight, False, iter(offsets_T.unbind(0))


def gradients(variant, dropout):
    name, options = VARIANTS[variant]
    model = small_model(name, dropout=dropout, **options).double()
    features = some_features(2, 5, 4, 4, 6).double().requires_grad_()
    torch.manual_seed(1)
    logits, maps, _ = model(features, torch.tensor([5, 3]))
    (logits.square().sum() + (maps * torch.arange(16.0).view(4, 4)).square().sum()).backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()} | {"features": features.grad}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_plain_autograd(monkeypatch, variant, dropout):
    ours = gradients(variant, dropout)
    for module in (attention, lstm, motion):
        monkeypatch.setattr(module, "Deferred", Plain)
    plain = gradients(variant, dropout)
    assert ours.keys() == plain.keys()
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, plain[key], rtol=1e-10, atol=1e-12, msg=key)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_kept_after_the_graph(monkeypatch, variant):
    """Reference counts alone free what the loop kept: there are no cycles for the collector."""
    kept = []
    original = Deferred.offset

    def watch(self, x):
        offset = original(self, x)
        kept.extend(weakref.ref(tensor) for tensor in self._inputs[-1:])
        return offset

    monkeypatch.setattr(Deferred, "offset", watch)
    name, options = VARIANTS[variant]
    model = small_model(name, **options)
    gc.collect()
    gc.disable()
    try:
        logits, maps, _ = model(some_features(2, 5, 4, 4, 6), torch.tensor([5, 3]))
        assert len(kept) >= 5
        assert all(reference() is not None for reference in kept)
        loss = logits.square().sum()
        loss.backward()
        del logits, maps, loss
        assert all(reference() is None for reference in kept)
    finally:
        gc.enable()


def test_without_gradients_nothing_is_kept():
    weight = torch.ones(3, 2, requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            layer = Deferred(weight, torch.zeros(4, 1, 3), gradient_of_linear)
            layer.offset(torch.ones(1, 2))
        assert layer._inputs == []


def test_backward_twice_gives_the_same_gradient():
    model = small_model("alstm", dropout=0.0)
    loss = model(some_features(2, 5, 4, 4, 6), torch.tensor([5, 3]))[0].square().sum()
    first, second = (torch.autograd.grad(loss, tuple(model.cells.parameters()), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["alstm", "conv_alstm", "motion_conv_alstm"])
def test_weights_are_cast_once_under_autocast_and_gradients_are_near(name):
    model = small_model(name, dropout=0.0, units=16)
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False):
            logits, _, _ = model(some_features(2, 5, 4, 4, 6), torch.tensor([5, 3]))
        logits.float().square().sum().backward()
        results.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
    for key, exact in results[0].items():
        assert results[1][key].dtype == torch.float32
        if not key.endswith("attention.score.bias"):  # nothing but rounding
            assert (results[1][key] - exact).norm() < 0.05 * exact.norm() + 1e-4, key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the fused cell needs a GPU")
@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
def test_the_fused_cell_of_a_gpu_computes_the_same(shape):
    torch.manual_seed(0)
    tensors = [torch.randn(*shape, channels, dtype=torch.float64) for channels in (8, 8, 2)]
    results = []
    for device in ("cpu", "cuda"):
        ours = [tensor.to(device).detach().requires_grad_() for tensor in tensors]
        h, c = lstm.advance(*ours)
        (h.square() + 3 * c).sum().backward()
        results.append([tensor.cpu() for tensor in (h.detach(), c.detach(), *(tensor.grad for tensor in ours))])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
