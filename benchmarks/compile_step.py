"""ALSTM's training step on a GPU three ways: Triton kernels by hand, one step compiled by Inductor, and left to autograd.

`python -m benchmarks.compile_step` prints a table within two minutes. Every way runs in processes of its own, first with empty
disk caches, then with those that the first one left; one that fails or takes too long gets a line that says so. The loop over
the frames and the CUDA graph of the whole training step are the same in all. Without a GPU everything is small and runs on the
CPU, which only shows that the script works.
"""

# B batch, T frames of a clip, K grid side, I = K * K cells, D channels, U units, V width of the scorer, G = 4U

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import spread
from pipeline_lib.compute.determinism import deterministic_algorithms, seeded
from pipeline_lib.compute.gpu_sharing import own_stream
from pipeline_lib.networks import alstm, alstm_op
from pipeline_lib.networks.attention import Attention
from pipeline_lib.networks.deferred import Deferred, gradient_of_linear
from pipeline_lib.networks.lstm import LSTMCell, LSTMStack, State
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import TrainParams
from pipeline_lib.train import graph
from pipeline_lib.train.loss import frame_cross_entropy
from pipeline_lib.train.trainer import Trainer
from pipeline_lib.training.batches import Batch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
FRAMES, GRID, CHANNELS, CLASSES, UNITS = (30, 7, 512, 51, 256) if HAS_GPU else (5, 3, 16, 5, 8)
PARAMS = TrainParams(alstm_units=UNITS).of("alstm")
STEPS, REPEATS = (100, 5) if HAS_GPU else (2, 3)
LIMIT_SECONDS = 115
CHILD_SECONDS = {"kernels": 40, "compiled": 60, "autograd": 30}
"""Most that one process may take."""
ATTEMPTS = (("kernels", "cold"), ("compiled", "cold"), ("compiled", "warm"), ("kernels", "warm"), ("autograd", "warm"))


def main() -> None:
    """Measure and print; with `--way`, measure one way in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds in all")
    parser.add_argument("--backend", default="inductor", help="torch.compile's; `aot_eager` where there is no compiler")
    parser.add_argument("--way", choices=CHILD_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--legacy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options)
    else:
        compare(options.limit, options.backend)


def compare(limit: float, backend: str) -> None:
    """Run every way in its processes and print the table."""
    name = torch.cuda.get_device_name() if HAS_GPU else "CPU, small sizes"
    print(f"{name}, torch {torch.__version__}, B {PARAMS.batch_size}, T {FRAMES}, {GRID}x{GRID}x{CHANNELS}, {UNITS} units")
    ends, legacy = time.monotonic() + limit, False
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way, caches in ATTEMPTS:
            row = attempt(way, caches, Path(folder), ends, backend, legacy=legacy)
            if "error" in row and way == "compiled" and not legacy and ends - time.monotonic() > 20:
                print(f"{way}, {caches}: {row['error']}; once more with PyTorch's older switches for TF32", flush=True)
                legacy = True
                row = attempt(way, caches, Path(folder), ends, backend, legacy=legacy)
            rows.append(row)
            print(json.dumps(row), flush=True)
    print_table(rows)


def attempt(way: str, caches: str, folder: Path, ends: float, backend: str, *, legacy: bool) -> dict[str, Any]:
    """Measure a way in a process; return what it had measured when it ended, failed or ran out of time."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    seconds = min(CHILD_SECONDS[way] if HAS_GPU else 600, ends - time.monotonic())
    row: dict[str, Any] = {"way": way, "caches": caches}
    if seconds < 5:
        return row | {"error": "no time left"}
    environment = os.environ | {"TORCHINDUCTOR_FX_GRAPH_CACHE": "1", "TORCHINDUCTOR_AUTOGRAD_CACHE": "1"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{way}/inductor", "TRITON_CACHE_DIR": f"{folder}/{way}/triton"}
    command = [sys.executable, "-m", "benchmarks.compile_step", "--way", way, "--result", str(result), "--backend", backend]
    command += ["--began", str(time.time())] + ["--gradients"] * (caches == "warm") + ["--legacy"] * legacy
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
        lines = done.stderr.strip().splitlines()
        error = {} if done.returncode == 0 else {"error": next((one for one in reversed(lines) if "Error" in one), lines[-1:])}
    except subprocess.TimeoutExpired:
        error = {"error": f"not done after {seconds:.0f} s"}
    return row | (json.loads(result.read_text()) if result.exists() else {}) | error


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a row for each process."""
    print("\n| way | disk caches | ms a step | imports and model, s | first step with compiling and capture, s | gradients |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cells = [row["way"], row["caches"], *(row.get(key, "-") for key in ("ms", "ready_s", "first_step_s", "gradients"))]
        print("| " + " | ".join(map(str, cells)) + " |" + (f" {row['error']}" if "error" in row else ""))
    print("\nGradients: largest difference from autograd's, over each weight's largest, in true fp32 without dropout.")


def measure(options: argparse.Namespace) -> None:
    """Measure one way; write what is known as soon as it is."""
    if options.way == "compiled":
        replace(alstm, "attention_lstm", CompiledSteps(options.backend))
    elif options.way == "autograd":
        replace(alstm_op, "_has_kernels", lambda features_BTID: False)
    elif not HAS_GPU:
        raise RuntimeError("the kernels need a GPU")
    if options.legacy:
        use_legacy_switches()
    with own_stream(DEVICE), seeded(0), deterministic_algorithms():
        network = build_model(PARAMS, channels=CHANNELS, grid=GRID, num_classes=CLASSES).to(DEVICE)
        batches = [random_batch() for _ in range(4)]
        with closing(Trainer(network, DEVICE, PARAMS, train=None, val=None)) as trainer:  # type: ignore[arg-type]
            wait()
            known: dict[str, Any] = {"ready_s": round(time.time() - options.began, 1)}
            for found in measure_steps(trainer, batches):
                known |= found
                options.result.write_text(json.dumps(known))
        if options.way == "kernels" and not alstm_op._kernels_work():
            raise RuntimeError("Triton does not compile the kernels here: this was autograd")
        if options.gradients:
            known["gradients"] = difference(network, batches[0])
            options.result.write_text(json.dumps(known))


def random_batch() -> Batch:
    """Return a batch on the device, as `ClipLoader` hands it over."""
    size = PARAMS.batch_size
    features_BTKKD = torch.rand(size, FRAMES, GRID, GRID, CHANNELS, device=DEVICE).mul_(5).half()
    return Batch(features_BTKKD, torch.full((size,), FRAMES, device=DEVICE), torch.arange(size, device=DEVICE) % CLASSES)


def measure_steps(trainer: Trainer, batches: Sequence[Batch]) -> Iterator[dict[str, Any]]:
    """Yield the seconds of the first step, then milliseconds of those after it."""
    trainer.network.train()
    began = time.perf_counter()
    trainer.step(batches[0])
    wait()
    yield {"first_step_s": round(time.perf_counter() - began, 2)}
    milliseconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for step in range(STEPS):
            trainer.step(batches[step % len(batches)])
        wait()
        milliseconds.append(1000 * (time.perf_counter() - began) / STEPS)
        yield {"ms": spread(milliseconds), "median_ms": statistics.median(milliseconds)}


def difference(network: torch.nn.Module, batch: Batch) -> str:
    """Return how far gradients are from autograd's, and of which weight."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, Attention):
            torch.nn.init.xavier_uniform_(module.score.weight)  # zeros would hide most gradients
    ours = gradients(network, batch)
    replace(alstm, "attention_lstm", alstm_op.attention_lstm)
    replace(alstm_op, "_has_kernels", lambda features_BTID: False)
    autograd = gradients(network, batch)
    # Softmax takes the score's bias out: its gradient is rounding.
    names = [name for name in autograd if not name.endswith("attention.score.bias")]
    relative = {name: float((ours[name] - autograd[name]).abs().max() / autograd[name].abs().max()) for name in names}
    worst = max(relative, key=lambda name: relative[name])
    return f"{relative[worst]:.1e} ({worst})"


def gradients(network: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of every parameter."""
    network.zero_grad()
    logits_BTC, attention_BTKK, _ = network(batch.features_BTKKD.float(), batch.valid_steps_B)
    loss = frame_cross_entropy(logits_BTC, batch.labels_B, batch.valid_steps_B) + attention_BTKK.square().sum()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


class CompiledSteps:
    """What `attention_lstm` computes, for the default scorer: one compiled step, called for every frame."""

    def __init__(self, backend: str) -> None:
        self.step = torch.compile(take_step, backend=backend, fullgraph=True, dynamic=False)

    def __call__(
        self,
        attention: Attention,
        cells: LSTMStack,
        features_BTID: Tensor,
        ahead: Tensor,
        states: Sequence[State],
        *,
        carry_state: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return outputs_BTU and attention_BTI; weights' gradients are computed once for all frames, as in autograd's loop."""
        cell, state = cells[0], attention.state
        assert carry_state
        assert attention.scorer == "local"
        assert isinstance(cell, LSTMCell)
        assert state is not None
        (h_BU, c_BU), (frames, batch, _, width) = states[0], ahead.shape
        factors_TBU = attention.dropout.draw(ahead, (frames, *h_BU.shape))
        weights_TBV = attention.score.weight * attention.dropout.draw(ahead, (frames, batch, width))
        from_state = Deferred(state.weight, state.bias.expand(frames, batch, -1), gradient_of_linear)
        joint = cell.join(frames, c_BU)
        rows = (features_BTID.unbind(1), ahead.unbind(0), factors_TBU.unbind(0), weights_TBV.unbind(0))
        outputs, maps = [], []
        for features_BID, ahead_BIV, factors_BU, weights_BV in zip(*rows, strict=True):
            offsets = next(from_state._offsets), next(joint._offsets)
            h_BU, c_BU, attention_BI, kept_BU, stacked_BS = self.step(
                h_BU, c_BU, features_BID, ahead_BIV, factors_BU, weights_BV, attention.score.bias,
                from_state.weight, joint.weight, *offsets,
            )  # fmt: skip
            if torch.is_grad_enabled():  # what `Deferred.offset` does; but here they are known only after the step
                from_state._inputs.append(kept_BU)
                joint._inputs.append(stacked_BS)
            outputs.append(h_BU)
            maps.append(attention_BI)
        return torch.stack(outputs, dim=1), torch.stack(maps, dim=1)


def take_step(
    h_BU: Tensor,
    c_BU: Tensor,
    features_BID: Tensor,
    ahead_BIV: Tensor,
    factors_BU: Tensor,
    weights_BV: Tensor,
    bias_1: Tensor,
    state_VU: Tensor,
    joint_GS: Tensor,
    state_offset_BV: Tensor,
    gates_offset_BG: Tensor,
) -> tuple[Tensor, ...]:
    """Attend, look, and advance the LSTM; also return the two products' inputs."""
    kept_BU = h_BU * factors_BU
    product_BV = kept_BU @ state_VU.t() + state_offset_BV
    hidden_BIV = torch.tanh(ahead_BIV + product_BV[:, None])
    attention_BI = torch.softmax((hidden_BIV * weights_BV[:, None]).sum(dim=2) + bias_1, dim=1)
    glimpse_BD = (attention_BI[:, :, None] * features_BID).sum(dim=1)
    stacked_BS = torch.cat((glimpse_BD, h_BU), dim=1)
    i, f, g, o = (stacked_BS @ joint_GS.t() + gates_offset_BG).chunk(4, dim=1)
    c_BU = torch.sigmoid(f) * c_BU + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c_BU), c_BU, attention_BI, kept_BU.detach(), stacked_BS.detach()


def use_legacy_switches() -> None:
    """Have captures set TF32 by PyTorch's older functions: its compiler reads those, and fails where the newer ones differ."""

    @contextmanager
    def tensor_cores() -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    replace(graph, "tensor_cores", tensor_cores)


def replace(module: Any, name: str, value: object) -> None:
    """Put something else in a module's place for a name, for the life of the process."""
    assert hasattr(module, name)
    setattr(module, name, value)


def wait() -> None:
    """Wait for the device."""
    if HAS_GPU:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
