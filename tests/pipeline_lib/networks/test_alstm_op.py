"""ALSTM's operator for GPUs against autograd: on a GPU where there is one, otherwise in Triton's interpreter."""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline_lib.networks import alstm_gpu, alstm_op
from pipeline_lib.networks.alstm import ALSTM

SIZES = {"channels": 130, "grid": 3, "num_classes": 5, "units": 20}
"""None a multiple of what a kernel takes at once."""


def every_third(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Dropout that is the same however many frames it is drawn for."""
    axis = -2 if shape[-1] == 1 else -1  # a layer of one output is kept as a column
    factors = 1.5 * (torch.arange(shape[axis], device=like.device) % 3 > 0).to(like.dtype)
    return (factors.unsqueeze(1) if axis == -2 else factors).expand(shape).contiguous()


def some_model(scorer: str, device: str) -> ALSTM:
    torch.manual_seed(0)
    model = ALSTM(**SIZES, dropout=0.4, scorer=scorer).to(device)  # type: ignore[arg-type]
    assert model.attention is not None
    model.attention.dropout.factors = every_third  # type: ignore[method-assign]
    return model


def some_clips(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(3, 4, 3, 3, 130, device=device), torch.tensor([4, 3, 2], device=device)


def use_kernels(patch: pytest.MonkeyPatch, used: bool) -> None:
    patch.setattr(alstm_op, "_has_kernels", lambda features: used)


def results(model: ALSTM, clips: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return outputs and gradients, always from the same random numbers."""
    model.zero_grad()
    torch.manual_seed(1)
    logits, attention, _ = model(*clips)
    cells = torch.arange(attention[0, 0].numel(), device=logits.device).view_as(attention[0, 0])
    (logits.square().sum() + (attention * cells).square().sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach(), "attention": attention.detach()} | gradients


def check_against_autograd(patch: pytest.MonkeyPatch, scorer: str, device: str) -> None:
    model, clips = some_model(scorer, device), some_clips(device)
    use_kernels(patch, False)
    plain = results(model, clips)
    use_kernels(patch, True)
    ours = results(model, clips)
    assert plain.keys() == ours.keys()
    for name, expected in plain.items():
        if name == "attention.score.bias" and scorer == "local":
            continue  # softmax takes it out: its gradient is rounding
        assert float((ours[name] - expected).abs().max()) < 1e-5 * float(expected.abs().max()), name


def check_without_attention_in_the_loss(patch: pytest.MonkeyPatch, scorer: str, device: str) -> None:
    """Then its gradient is absent."""
    model, clips = some_model(scorer, device), some_clips(device)
    gradients = []
    for used in (False, True):
        use_kernels(patch, used)
        torch.manual_seed(1)
        loss = model(*clips)[0].square().sum()
        gradients.append(torch.autograd.grad(loss, tuple(model.cells.parameters())))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def check_nothing_is_kept(patch: pytest.MonkeyPatch, scorer: str, device: str) -> None:
    """Reference counts alone free what backward reads: there are no cycles for the collector."""
    made: list[weakref.ref[torch.Tensor]] = []
    run = alstm_gpu._Loop.forward

    def watch(loop: alstm_gpu._Loop) -> None:
        made.append(weakref.ref(loop.results.stacked_TBS))
        run(loop)

    patch.setattr(alstm_gpu._Loop, "forward", watch)
    use_kernels(patch, True)
    model = some_model(scorer, device)
    gc.disable()
    try:
        logits, attention, _ = model(*some_clips(device))
        assert len(made) == 1
        assert made[0]() is not None
        loss = logits.square().sum()
        loss.backward()
        del logits, attention, loss
        assert made[0]() is None
    finally:
        gc.enable()


def check_registration(patch: pytest.MonkeyPatch, scorer: str, device: str) -> None:
    """Schema, gradients and shapes as PyTorch's own check has them."""
    use_kernels(patch, True)
    calls: list[alstm_gpu.Inputs] = []
    run = alstm_gpu.attention_lstm

    def watch(inputs: alstm_gpu.Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(inputs)
        return run(inputs)

    patch.setattr(alstm_gpu, "attention_lstm", watch)
    some_model(scorer, device)(*some_clips(device))
    (inputs,) = calls
    arguments = tuple(tensor if tensor is None else tensor.detach() for tensor in inputs)
    features, *rest, factors, hidden_factors = arguments
    learning = tuple(tensor.clone().requires_grad_() for tensor in rest if tensor is not None)
    torch.library.opcheck(torch.ops.har.attention_lstm.default, (features, *learning, factors, hidden_factors))


CHECKS = (check_against_autograd, check_without_attention_in_the_loss, check_nothing_is_kept, check_registration)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scorer", ["pooled", "local"])
@pytest.mark.parametrize("check", CHECKS)
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, check: Callable[[pytest.MonkeyPatch, str, str], None], scorer: str) -> None:
    assert alstm_op._kernels_work()
    check(monkeypatch, scorer, "cuda")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the test above runs the kernels themselves")
def test_interpreted() -> None:
    """In a process of its own: Triton asks once, when it is imported, whether to interpret."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-m", __name__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reason", ["a CPU", "fp64", "autocast", "gradients of the features", "no kernels", "nothing"])
def test_autograd_where_the_kernels_do_not_compute_it(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    dtype = torch.float64 if reason == "fp64" else torch.float32
    features: Any = SimpleNamespace(is_cuda=reason != "a CPU", dtype=dtype, requires_grad=reason == "gradients of the features")
    monkeypatch.setattr(alstm_op, "_kernels_work", lambda: reason != "no kernels")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: reason == "autocast")
    assert alstm_op._has_kernels(features) == (reason == "nothing")


if __name__ == "__main__":
    for one in CHECKS:
        for scorer in ("pooled", "local"):
            with pytest.MonkeyPatch.context() as patch:
                one(patch, scorer, "cpu")
