"""The GPUs of this machine, asked for without importing PyTorch."""

from __future__ import annotations

import os

import pynvml


def count_gpus() -> int:
    """Return how many GPUs this process may use."""
    return len(_visible())


def smallest_gpu_bytes() -> int | None:
    """Return the memory of the smallest of them; None without any."""
    return min((pynvml.nvmlDeviceGetMemoryInfo(handle).total for handle in _visible()), default=None)


def _visible() -> list[object]:
    """Return NVML's handles of the GPUs, by their numbers or UUIDs in CUDA_VISIBLE_DEVICES if that is set."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
        if names is None:
            return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [_handle(name.strip()) for name in names.split(",") if name.strip() not in ("", "-1")]
    except pynvml.NVMLError:
        return []


def _handle(name: str) -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
