"""Where networks run and in which precision: chosen once, said in the log, never silently something else."""

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
"""What mallopt(3) calls them in malloc.h."""


def choose_device(name: Device, *, key: str = "features.device") -> torch.device:
    """Return the device that `name` stands for; `auto` is the GPU if there is one. `key` is the parameter it came from.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError(f"{key} = cuda: PyTorch finds no GPU on this machine; use `auto` or `cpu`, or mend the driver")
    device = torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
    if device.type == "cuda":
        _settle()
    _log_device(device, key.partition(".")[0])
    return device


@functools.cache
def _settle() -> None:
    """Choose once for the process, before its first work on a GPU, what must not depend on who comes first."""
    set_fp32_precision("ieee", "ieee", "ieee")
    # cuBLAS is deterministic only with a workspace of its own, and PyTorch asks for its size only once.
    os.environ.setdefault(CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC)


def fp32_precision() -> tuple[str, str, str]:
    """Return how GPUs compute what is in fp32, `ieee` or `tf32`: products, convolutions and recurrent layers.

    PyTorch's older functions for it (`allow_tf32`, `get_float32_matmul_precision`) warn in some versions and fail beside these.
    """
    return tuple(operations.fp32_precision for operations in _fp32_operations())


def set_fp32_precision(*precisions: str) -> None:
    """Set what `fp32_precision` returns. PyTorch's default is TF32 for convolutions and recurrent layers."""
    for operations, precision in zip(_fp32_operations(), precisions, strict=True):
        operations.fp32_precision = precision


def _fp32_operations() -> tuple[Any, Any, Any]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def choose_precision(name: Precision, device: torch.device, *, training: bool) -> torch.dtype:
    """Return the type a network computes in.

    `auto` is bf16 where the device has instructions for it, else fp32; but fp16 on a GPU outside training, where it is as
    fast and eight times as exact, and no gradient can underflow. For training, fp16 means `auto`.
    """
    if name == "fp16" and training:
        name = "auto"
    if name == "auto" and device.type == "cuda" and not training:
        return torch.float16
    if name == "auto":
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    return PRECISIONS[name]


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices natively (GPU since Ampere, CPU with AMX or AVX-512 BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_bf16_unit() is not None


def describe_device(device: torch.device) -> str:
    """Return the device in words: `NVIDIA H200`, `CPU (2 cores, bf16 AMX)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    unit = _cpu_bf16_unit()
    return f"CPU ({num_cores()} cores, {f'bf16 {unit}' if unit else 'fp32'})"


def keep_freed_memory() -> None:
    """Have the C library keep up to half a gigabyte of what is freed, for who asks next; for the life of the process.

    By default glibc gives much of what a training step frees back to the system, and gets it again page by page, zeroed: 17 to
    30 % of the time of ALSTM's step on a CPU. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most there is
        mallopt(_TRIM_THRESHOLD, 512 << 20)


def _cpu_bf16_unit() -> str | None:
    capabilities = torch.cpu.get_capabilities()
    units = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "sve_bf16": "SVE"}
    return next((unit for flag, unit in units.items() if capabilities.get(flag)), None)


@functools.cache
def _log_device(device: torch.device, stage: str) -> None:
    logger.info("%s on %s", stage, describe_device(device))
