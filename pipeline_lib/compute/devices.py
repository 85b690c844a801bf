"""Choose the device and precision of networks, and log the choice."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from typing import Any, Literal

import torch

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.errors import UserError
from pipeline_lib.params import Device

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp16", "bf16", "fp32"]
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Option numbers of mallopt(3), from malloc.h."""


def choose_device(name: Device, *, key: str = "features.device") -> torch.device:
    """Return the device for `name`; `auto` is the GPU if there is one. `key` is the parameter's name, for errors and the log.

    Raises:
        UserError: `name` is `cuda` and there is no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError(f"{key} = cuda: PyTorch finds no GPU on this machine; use `auto` or `cpu`, or fix the driver")
    device = torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
    if device.type == "cuda":
        _configure_gpu()
    _log_device(device, key.partition(".")[0])
    return device


@functools.cache
def _configure_gpu() -> None:
    """Set the process-wide GPU defaults, once and before any work on a GPU."""
    set_fp32_precision("ieee", "ieee", "ieee")
    # cuBLAS needs a fixed workspace to be deterministic, and PyTorch reads this setting only once.
    os.environ.setdefault(CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC)


def fp32_precision() -> tuple[str, str, str]:
    """Return the GPU's fp32 precision (`ieee` or `tf32`) of matrix products, convolutions and recurrent layers.

    PyTorch's older functions (`allow_tf32`, `get_float32_matmul_precision`) must not be mixed with this one.
    """
    return tuple(operations.fp32_precision for operations in _fp32_operations())


def set_fp32_precision(*precisions: str) -> None:
    """Set the precisions that `fp32_precision` returns. PyTorch's default is TF32 for convolutions and recurrent layers."""
    for operations, precision in zip(_fp32_operations(), precisions, strict=True):
        operations.fp32_precision = precision


def _fp32_operations() -> tuple[Any, Any, Any]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def choose_precision(name: Precision, device: torch.device, *, training: bool) -> torch.dtype:
    """Return the dtype a network computes in.

    `auto` is fp16 on a GPU outside training, which is more precise than bf16 and has no gradients that could underflow.
    Otherwise `auto` is bf16 if the device has instructions for it, else fp32. For training, fp16 means `auto`.
    """
    if name == "fp16" and training:
        name = "auto"
    if name == "auto" and device.type == "cuda" and not training:
        return torch.float16
    if name == "auto":
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    return PRECISIONS[name]


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices natively (GPU since Ampere, CPU with AMX or AVX-512 BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_bf16_unit() is not None


def describe_device(device: torch.device) -> str:
    """Return the device's name, for example `NVIDIA H200` or `CPU (2 cores, bf16 AMX)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    unit = _cpu_bf16_unit()
    return f"CPU ({num_cores()} cores, {f'bf16 {unit}' if unit else 'fp32'})"


def keep_freed_memory() -> None:
    """Make glibc keep up to 512 MiB of freed memory for the life of the process; other C libraries are unaffected.

    By default glibc returns much of a training step's memory to the system, and page faults then slow down the next step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the maximum
        mallopt(_TRIM_THRESHOLD, 512 << 20)


def _cpu_bf16_unit() -> str | None:
    capabilities = torch.cpu.get_capabilities()
    units = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "sve_bf16": "SVE"}
    return next((unit for flag, unit in units.items() if capabilities.get(flag)), None)


@functools.cache
def _log_device(device: torch.device, stage: str) -> None:
    logger.info("%s on %s", stage, describe_device(device))
