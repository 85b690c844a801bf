"""The loop of ALSTM that is written down against autograd's: on a CPU, on a GPU, and everywhere in Triton's interpreter."""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

from pipeline_lib.models import alstm_gpu
from pipeline_lib.models.alstm import ALSTM
from pipeline_lib.models.alstm_cpu import CPUSteps
from pipeline_lib.models.alstm_gpu import GPUSteps
from pipeline_lib.models.alstm_loop import Steps

SIZES = {"channels": 130, "grid": 3, "num_classes": 5, "units": 20}
"""None a multiple of what a kernel takes at once."""


def every_third(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Dropout that is the same however many frames it is drawn for."""
    axis = -2 if shape[-1] == 1 else -1  # a layer of one output is kept as a column
    factors = 1.5 * (torch.arange(shape[axis], device=like.device) % 3 > 0).to(like.dtype)
    return (factors.unsqueeze(1) if axis == -2 else factors).expand(shape).contiguous()


def results(model: ALSTM, features: torch.Tensor, valid: torch.Tensor, steps: type[Steps] | None) -> dict[str, torch.Tensor]:
    """Return outputs and gradients, of one way or the other, from the same random numbers."""
    model.zero_grad()
    torch.manual_seed(1)
    model._steps = lambda features: steps  # type: ignore[method-assign]
    logits, attention = model(features, valid)
    cells = torch.arange(attention[0, 0].numel(), device=features.device).view_as(attention[0, 0])
    (logits.square().sum() + (attention * cells).square().sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach(), "attention": attention.detach()} | gradients


def check(scorer: str, device: str, steps: type[Steps], *, tolerance: float) -> None:
    torch.manual_seed(0)
    model = ALSTM(**SIZES, dropout=0.4, scorer=scorer).to(device)  # type: ignore[arg-type]
    assert model.attention is not None
    model.attention.dropout.factors = every_third  # type: ignore[method-assign]
    features, valid = torch.rand(3, 4, 3, 3, 130, device=device), torch.tensor([4, 3, 2], device=device)
    plain, fused = (results(model, features, valid, one) for one in (None, steps))
    assert plain.keys() == fused.keys()
    for name, expected in plain.items():
        if name == "attention.score.bias" and scorer == "local":
            continue  # softmax takes it out: its gradient is rounding
        assert float((fused[name] - expected).abs().max()) < tolerance * float(expected.abs().max()), name


@pytest.mark.parametrize("scorer", ["pooled", "local"])
def test_on_a_cpu(scorer: str) -> None:
    check(scorer, "cpu", CPUSteps, tolerance=1e-5)


@pytest.mark.parametrize("scorer", ["pooled", "local"])
def test_nothing_is_kept_after_the_graph(scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference counts alone free the buffers: there are no cycles for the collector."""
    made: list[weakref.ref[Steps]] = []
    start = CPUSteps.forward

    def watch(steps: CPUSteps) -> tuple[torch.Tensor, torch.Tensor]:
        made.append(weakref.ref(steps))
        return start(steps)

    monkeypatch.setattr(CPUSteps, "forward", watch)
    model = ALSTM(**SIZES, dropout=0.4, scorer=scorer)  # type: ignore[arg-type]
    gc.disable()
    try:
        logits, attention = model(torch.rand(3, 4, 3, 3, 130), torch.tensor([4, 3, 2]))
        assert len(made) == 1
        assert made[0]() is not None
        loss = logits.square().sum()
        loss.backward()
        del logits, attention, loss
        assert made[0]() is None
    finally:
        gc.enable()


def test_what_is_not_finite_is_left_to_the_loss() -> None:
    """NumPy would warn, and warnings are errors here."""
    model = ALSTM(**SIZES, dropout=0.0)
    half = model.cells[0].input
    assert half.bias is not None
    torch.nn.init.constant_(half.weight, torch.inf)
    torch.nn.init.constant_(half.bias, -torch.inf)
    logits, _ = model(torch.rand(1, 4, 3, 3, 130), torch.tensor([4]))
    logits.sum().backward()
    assert logits.isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scorer", ["pooled", "local"])
def test_on_a_gpu(scorer: str) -> None:
    assert alstm_gpu.is_usable()
    check(scorer, "cuda", GPUSteps, tolerance=1e-5)


@pytest.mark.integration
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests above run the kernels themselves")
def test_interpreted() -> None:
    """In a process of its own: Triton asks once, when it is imported, whether to interpret."""
    pytest.importorskip("triton")
    checks = "; ".join(f"check('{scorer}', 'cpu', GPUSteps, tolerance=1e-5)" for scorer in ("pooled", "local"))
    code = f"from {__name__} import GPUSteps, check; {checks}"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
