"""Where a stage's work is done: here, or in worker processes, where several are at it side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import UserError

if TYPE_CHECKING:
    from pipeline_lib.compute.planning import Plan
    from pipeline_lib.params import Device
    from pipeline_lib.workers.pool import Pool
    from pipeline_lib.workers.worker import Place

MOST_MODELS = 64
"""Models of a run under way at once: more than a machine computes."""

_lock = threading.Lock()
_pools: dict[tuple[Place, ...], Pool] = {}
_rooms: dict[Plan, threading.Semaphore] = {}


def plan_models(device: Device, key: str, feature_files: Sequence[Path], alike: int, workers: int | None) -> Plan:
    """Plan the training or evaluation of a run's models, of which so many are of a kind.

    On the CPU only those share the machine. One that takes longer than all others would be left with a share of the cores in
    the end: a run of the demo's models, one of each kind, took 121 s on two cores together and 88 s one after the other.

    Args:
        device: where it is done, as in the parameters.
        key: the parameter that `device` comes from.
        feature_files: what is read.
        alike: models of one kind.
        workers: how many at once; default: as many as the machine holds.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    from pipeline_lib.compute.devices import choose_device
    from pipeline_lib.compute.planning import plan_trainings

    features_bytes = sum(file.stat().st_size for file in feature_files)
    chosen = choose_device(device, key=key)
    return plan_trainings(chosen, features_bytes, MOST_MODELS if chosen.type == "cuda" else alike, workers)


def plan_shards(device: Device) -> Plan | None:
    """Plan the extraction of features: a process for each GPU where there are several; None if it is done here."""
    from pipeline_lib.compute.devices import choose_device
    from pipeline_lib.compute.planning import Plan, gpu_places
    from pipeline_lib.features.extraction import shards_at_once

    if choose_device(device).type != "cuda" or len(gpu_places()) == 1:
        return None
    return Plan(gpu_places(), slots=shards_at_once(), at_once=shards_at_once())


@contextmanager
def turn(plan: Plan | None) -> Iterator[None]:
    """Wait until the plan has room for one more, and take it for the block.

    Raises:
        RuntimeError: the run has ended meanwhile.
    """
    if plan is None:
        yield
        return
    with _lock:
        room = _rooms.setdefault(plan, threading.Semaphore(plan.at_once))
    with room:
        if _rooms.get(plan) is not room:
            raise RuntimeError("not begun: the run has ended")
        yield


def run_at(
    plan: Plan | None,
    function: Callable[..., Any],
    *args: Any,
    callbacks: Mapping[str, Callable[[Any], Any]] | None = None,
    **kwargs: Any,
) -> Any:
    """Return `function(*args, **kwargs, **callbacks)`, called by the least busy process of the plan, or here if it has but one.

    Raises:
        Exception: what the function raises.
        UserError: the process died.
    """
    if plan is None or len(plan.places) == 1:
        return function(*args, **kwargs, **(callbacks or {}))
    from pipeline_lib.workers.pool import DiedError

    try:
        return _open(plan.places).run(function, *args, callbacks=callbacks, **kwargs)
    except DiedError as error:
        raise UserError(
            f"{function.__name__}: {error}; what is finished is kept: run again, "
            "with fewer at once (train.workers) or more memory"
        ) from None


def _open(places: tuple[Place, ...]) -> Pool:
    """Return the workers at these places, which stay for the next call; those that died are replaced."""
    from pipeline_lib.workers.pool import Pool

    with _lock:
        if places not in _pools:
            _pools[places] = Pool(places)
        _pools[places].replace_dead()
        return _pools[places]


def end_workers() -> None:
    """End all worker processes, and what they are doing; what still waits for its turn does not begin."""
    with _lock:
        _rooms.clear()
        while _pools:
            _pools.popitem()[1].end()
