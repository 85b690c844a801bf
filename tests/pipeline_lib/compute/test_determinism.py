"""Settings of the process, while several threads want them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils import deterministic

from pipeline_lib.compute.determinism import deterministic_algorithms, reproducible, seeded
from pipeline_lib.compute.devices import CUBLAS_WORKSPACE


def settings() -> tuple[bool, bool, str | None]:
    fills: bool = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return torch.are_deterministic_algorithms_enabled(), fills, os.environ.get(CUBLAS_WORKSPACE)


def test_deterministic_from_the_first_that_begins_to_the_last_that_ends() -> None:
    before = settings()
    with deterministic_algorithms():
        with deterministic_algorithms():
            assert settings() == (True, False, ":4096:8")
        assert settings() == (True, False, ":4096:8")
    assert settings() == before
    with pytest.raises(ValueError, match="inside"), deterministic_algorithms():
        raise ValueError("inside")
    assert settings() == before


def test_threads_leave_the_settings_as_they_were() -> None:
    before = settings()

    def use(_: int) -> None:
        for _ in range(20):
            with deterministic_algorithms():
                assert settings() == (True, False, ":4096:8")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert settings() == before


def test_blocks_with_a_seed_wait_for_each_other() -> None:
    def draw(seed: int) -> list[float]:
        with seeded(seed):
            first = torch.rand(1)
            threading.Event().wait(0.005)
            return torch.cat([first, torch.rand(1)]).tolist()

    wanted = [draw(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(draw, range(6))) == wanted


def test_reproducible_is_both() -> None:
    with reproducible(4, deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        drawn = torch.rand(2)
    with reproducible(4, deterministic=False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.equal(drawn, torch.rand(2))
