"""Devices: a GPU that is asked for is never silently replaced; bf16 only where the device computes in it."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys

import pytest
import torch

from pipeline_lib.compute import devices
from pipeline_lib.compute.devices import choose_device, choose_precision, describe_device

CPU = torch.device("cpu")


def test_gpu_asked_for_and_absent_is_an_error_that_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^features\.device = cuda: .* no GPU .* use `auto`"):
        choose_device("cuda")
    with pytest.raises(ValueError, match=r"^train\.device = cuda"):
        choose_device("cuda", key="train.device")


def test_auto_is_the_cpu_without_a_gpu_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices._log_device.cache_clear()
    with caplog.at_level(logging.INFO):
        assert choose_device("auto") == CPU
        assert choose_device("auto") == CPU
    assert caplog.messages == [f"features on {describe_device(CPU)}"]


def test_on_a_gpu_fp32_is_true_fp32_from_the_first_choice_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own default is TF32 in convolutions; the setting is made once, not while others may have another."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.delenv(devices.CUBLAS_WORKSPACE, raising=False)
    devices._configure_gpu.cache_clear()
    devices.set_fp32_precision("none", "tf32", "tf32")
    choose_device("cpu")
    assert devices.fp32_precision() == ("none", "tf32", "tf32")
    for _ in range(2):
        choose_device("auto")
    assert devices.fp32_precision() == ("ieee", "ieee", "ieee")
    assert devices._configure_gpu.cache_info().misses == 1
    assert os.environ[devices.CUBLAS_WORKSPACE] == ":4096:8"


def test_auto_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(
    ("capabilities", "precision", "words"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16, "bf16 AMX"),
        ({"avx512_bf16": True}, torch.bfloat16, "bf16 AVX-512"),
        ({"avx512_f": True}, torch.float32, "fp32"),
    ],
)
def test_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: torch.dtype, words: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU, training=False) == choose_precision("auto", CPU, training=True) == precision
    assert words in describe_device(CPU)


def test_precision_asked_for_is_kept() -> None:
    assert choose_precision("fp16", CPU, training=False) == torch.float16
    assert choose_precision("bf16", CPU, training=True) == torch.bfloat16
    assert choose_precision("fp32", CPU, training=True) == torch.float32


def test_training_is_not_in_fp16_and_a_gpu_outside_training_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_precision("auto", gpu, training=False) == torch.float16
    for name in ("auto", "fp16"):
        assert choose_precision(name, gpu, training=True) == torch.bfloat16


STEPS = """
import resource
from pipeline_lib.compute.devices import keep_freed_memory
keep_freed_memory()
def step():
    held = [bytearray(n << 20) for n in (20, 5, 30)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.integration
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_that_is_freed_is_not_asked_for_again() -> None:
    faults = int(subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True).stdout)
    assert faults < 1000, "pages of 4 KB; 14,000 if glibc is left alone"
