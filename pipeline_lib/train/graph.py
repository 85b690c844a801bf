"""A training step as one CUDA graph.

Thirty small steps in time are thousands of kernels, and starting them one by one takes longer than running them. A graph keeps
the precision that it was captured with, so that replays in one thread go on whatever others do.
"""

# B batch

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from pipeline_lib.compute.gpu import GPU_LOCK, tensor_cores
from pipeline_lib.training.batches import Batch

WARM_UP_STEPS = 3
"""Steps before the capture, so that all memory is there when it is made; PyTorch asks for a few."""


class GraphedStep:
    """Captures `step` at the first batch and replays it for every one: a resumed training takes the same kernels.

    Products are in TF32. All calls are made in one stream, not the default one; other threads have other streams.
    """

    def __init__(
        self,
        step: Callable[[Batch], torch.Tensor],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        """Take a step that works on the device alone: it may not read a result, nor depend on a batch's values.

        All its random numbers are from `generator`.
        """
        self._step, self._network, self._optimizer, self._batch_size = step, network, optimizer, batch_size
        self._generator = generator
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._result: torch.Tensor | None = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Take one step; what is returned is overwritten by the next."""
        batch = self._fill_up(batch)
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
        """Free the graph and its memory, not during a capture in another thread: that would break it."""
        if self._graph is not None:
            with GPU_LOCK.shared():
                torch.cuda.current_stream().synchronize()
                self._graph = self._batch = self._result = None

    def _fill_up(self, batch: Batch) -> Batch:
        """Return the batch at full size: clips without valid frames count for nothing."""
        missing = self._batch_size - len(batch.labels_B)
        if not missing:
            return batch
        return Batch(*(functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, missing)) for tensor in batch))

    def _capture(self, batch: Batch) -> None:
        self._batch = Batch(*(tensor.clone() for tensor in batch))
        with GPU_LOCK.exclusive(), tensor_cores():
            with self._as_before():
                for _ in range(WARM_UP_STEPS):
                    self._step(self._batch)
            self._graph = torch.cuda.CUDAGraph()
            if torch.__version__ < "2.13":  # from then on a graph finds out by itself
                self._graph.register_generator_state(self._generator)
            # In the stream of the warm-up, whose cuBLAS workspace is no other graph's; other threads may allocate meanwhile.
            with (
                _no_garbage_collection(),
                torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"),
            ):
                self._result = self._step(self._batch)

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Undo what the block does to weights, optimizer and random numbers."""
        weights = [tensor.detach().clone() for tensor in self._network.state_dict().values()]
        moments = {key: tensor.clone() for key, tensor in self._moments()}
        random_state = self._generator.get_state()
        yield
        self._generator.set_state(random_state)
        for tensor, before in zip(self._network.state_dict().values(), weights, strict=True):
            tensor.copy_(before)
        for key, tensor in self._moments():
            if key in moments:
                tensor.copy_(moments[key])
            else:
                tensor.zero_()  # as the optimizer begins

    def _moments(self) -> Iterator[tuple[tuple[int, str], torch.Tensor]]:
        for parameter, state in self._optimizer.state.items():
            for name, tensor in state.items():
                yield (id(parameter), name), tensor


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep an earlier training's graph from being destroyed in the block, which would break a capture."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
