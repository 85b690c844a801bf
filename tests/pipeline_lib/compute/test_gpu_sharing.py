"""Who keeps whom out on a GPU_LOCK. Streams need one; the rest does not."""

from __future__ import annotations

import threading

import pytest
import torch

from pipeline_lib.compute.determinism import deterministic_algorithms
from pipeline_lib.compute.devices import fp32_precision
from pipeline_lib.compute.gpu_sharing import GPU_LOCK, deterministic_inference, exclusive_gpu, own_stream, tensor_cores

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a stream needs a GPU")


def test_inference_on_a_gpu_waits_for_who_is_alone_there_and_on_a_cpu_does_not() -> None:
    entered = {"cpu": threading.Event(), "cuda": threading.Event()}

    def infer(device: torch.device) -> None:
        with deterministic_inference(device):
            entered[device.type].set()

    threads = [threading.Thread(target=infer, args=(device,)) for device in (CPU, CUDA)]
    with GPU_LOCK.exclusive(), exclusive_gpu(CPU):
        for thread in threads:
            thread.start()
        assert entered["cpu"].wait(5)
        assert not entered["cuda"].wait(0.05)
    assert entered["cuda"].wait(5)
    for thread in threads:
        thread.join()


def test_fp32_is_true_fp32_but_where_tensor_cores_are_asked_for() -> None:
    with tensor_cores():
        assert fp32_precision() == ("tf32",) * 3
    with pytest.raises(ValueError, match="inside"), tensor_cores():
        raise ValueError("inside")
    assert fp32_precision() == ("ieee",) * 3


def test_inference_on_a_gpu_is_deterministic_and_in_true_fp32_whoever_is_beside_it() -> None:
    def settings() -> tuple[object, ...]:
        return fp32_precision(), torch.are_deterministic_algorithms_enabled(), GPU_LOCK._holders._value

    alone = settings()
    with deterministic_inference(CUDA):
        inside = settings()
        with deterministic_algorithms(), deterministic_inference(CPU):
            assert settings() == inside
    assert inside == (("ieee",) * 3, True, alone[2] - 1)
    assert settings() == alone


def test_on_a_cpu_no_stream_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_lib.compute.gpu_sharing._take_stream", lambda: pytest.fail("a stream was taken"))
    with own_stream(CPU), own_stream(CPU):
        pass


@needs_gpu
def test_blocks_at_the_same_time_have_different_streams_and_later_ones_the_same_again() -> None:
    default = torch.cuda.current_stream()
    with own_stream(CUDA):
        first = torch.cuda.current_stream()
        with own_stream(CUDA):
            second = torch.cuda.current_stream()
        assert torch.cuda.current_stream() == first
    assert len({stream.cuda_stream for stream in (default, first, second)}) == 3
    for _ in range(40):  # more than there are in PyTorch's pool
        torch.cuda.Stream(), torch.cuda.Stream(priority=0)
        with own_stream(CUDA):
            assert torch.cuda.current_stream().cuda_stream in (first.cuda_stream, second.cuda_stream)
    assert torch.cuda.current_stream() == default
