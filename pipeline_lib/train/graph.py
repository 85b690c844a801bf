"""Capture a training step as a CUDA graph.

A step of a recurrent model launches thousands of small kernels, so launching dominates its time. A graph keeps the precision
that it was captured with, so replays need no lock.
"""

# B batch

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from pipeline_lib.compute.gpu_sharing import GPU_LOCK, tensor_cores
from pipeline_lib.training.batches import Batch

WARM_UP_STEPS = 3
"""Steps before the capture, so that all memory is allocated; PyTorch recommends a few."""


class GraphedStep:
    """Capture a training step at the first batch and replay it for all batches, including the first.

    Matrix products are in TF32. Call it in one non-default stream that no other thread uses.
    """

    def __init__(
        self,
        step: Callable[[Batch], torch.Tensor],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        """Prepare to capture `step`, which must not synchronise with the CPU or depend on a batch's values.

        `generator` must be the step's only source of random numbers.
        """
        self._step, self._network, self._optimizer, self._batch_size = step, network, optimizer, batch_size
        self._generator = generator
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._result: torch.Tensor | None = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Take one step and return its result, which the next step overwrites."""
        batch = self._pad(batch)
        if self._graph is None:
            self._capture(batch)
        assert self._graph is not None
        assert self._batch is not None
        assert self._result is not None
        for static, values in zip(self._batch, batch, strict=True):
            static.copy_(values)
        self._graph.replay()
        return self._result

    def close(self) -> None:
        """Free the graph and its memory, but not during a capture in another thread, which it would break."""
        if self._graph is not None:
            with GPU_LOCK.shared():
                torch.cuda.current_stream().synchronize()
                self._graph = self._batch = self._result = None

    def _pad(self, batch: Batch) -> Batch:
        """Pad the batch to full size with clips that have no valid frames and hence no effect."""
        missing = self._batch_size - len(batch.labels_B)
        if not missing:
            return batch
        return Batch(*(functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, missing)) for tensor in batch))

    def _capture(self, batch: Batch) -> None:
        self._batch = Batch(*(tensor.clone() for tensor in batch))
        with GPU_LOCK.exclusive(), tensor_cores():
            with self._restored_afterwards():
                for _ in range(WARM_UP_STEPS):
                    self._step(self._batch)
            self._graph = torch.cuda.CUDAGraph()
            if torch.__version__ < "2.13":  # later versions register generators automatically
                self._graph.register_generator_state(self._generator)
            # Same stream as the warm-up: its cuBLAS workspace belongs to this graph alone. Other threads may allocate memory.
            with (
                _no_garbage_collection(),
                torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"),
            ):
                self._result = self._step(self._batch)

    @contextmanager
    def _restored_afterwards(self) -> Iterator[None]:
        """Restore weights, optimizer state and random generator after the block."""
        weights = [tensor.detach().clone() for tensor in self._network.state_dict().values()]
        saved_state = {key: tensor.clone() for key, tensor in self._optimizer_state()}
        random_state = self._generator.get_state()
        yield
        self._generator.set_state(random_state)
        for tensor, before in zip(self._network.state_dict().values(), weights, strict=True):
            tensor.copy_(before)
        for key, tensor in self._optimizer_state():
            if key in saved_state:
                tensor.copy_(saved_state[key])
            else:
                tensor.zero_()  # Adam's initial state

    def _optimizer_state(self) -> Iterator[tuple[tuple[int, str], torch.Tensor]]:
        for parameter, state in self._optimizer.state.items():
            for name, tensor in state.items():
                yield (id(parameter), name), tensor


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection in the block: destroying another graph would break a capture."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
