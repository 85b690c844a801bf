"""What every stage's task shares: the context it runs in, the reference it returns, and how it is cached.

`@stage(recipe)` turns a function that fills a folder into a Prefect task whose cache key is the artifact's own key. Prefect's
record of a result is trusted only while the artifact behind it is whole.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from pydantic import BaseModel, ConfigDict

from pipeline_lib.artifacts import Artifact, Recipe, Store
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.shared_lock import Room
from pipeline_lib.errors import UserError
from tasks.placing import MOST_MODELS, end_workers, turn

if TYPE_CHECKING:
    from pipeline_lib.compute.planning import Plan

Result = TypeVar("Result")

Worker = Literal["device", "model", "extractor", "decoder"]
"""`device`: the one thread that computes with all that the machine has. `model`: threads whose trainings and evaluations
share it (`tasks.placing`), while nothing is at work on `device`. `extractor`: one thread that computes features, but several
where a GPU does so for a shard in no time. `decoder`: one thread a core, so that mapped shards do not start ffmpeg all at once.
Prefect's own threads only wait: for what a task needs, and for a worker."""

_pools: dict[Worker, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
_machine = Room(MOST_MODELS)
_under_way: dict[Path, Future[Ref]] = {}
"""What is being found or made, by the artifact's folder."""


@functools.lru_cache(maxsize=4)
def open_store(workspace: Path) -> Store:
    """Return the process's store of a workspace."""
    return Store(workspace)


class Context(BaseModel):
    """Where a task works, and which stages it must make again. Never part of a key."""

    model_config = ConfigDict(frozen=True)
    workspace: Path
    refresh: tuple[str, ...] = ()
    alike: int = 1
    """How many models of each kind the run trains, on several folds or with several seeds."""
    workers: int | None = None
    """How many models it trains at once, if that was asked for."""

    @property
    def store(self) -> Store:
        """The workspace's artifacts."""
        return open_store(self.workspace)

    @property
    def results(self) -> Path:
        """Where Prefect keeps the results of cached tasks."""
        return self.store.results


class Ref(BaseModel):
    """What a stage's task returns: which artifact it made or found. No path, so that a workspace can be moved."""

    model_config = ConfigDict(frozen=True)
    stage: str
    key: str
    content_key: str
    counts: dict[str, Any]
    seconds: float
    made: bool
    """Whether this task run made the artifact, rather than found it whole."""

    @classmethod
    def to(cls, artifact: Artifact, *, made: bool) -> Ref:
        """Return a reference to the artifact."""
        manifest = artifact.manifest
        return cls(
            stage=manifest.stage,
            key=manifest.key,
            content_key=manifest.content_key,
            counts=manifest.counts,
            seconds=manifest.seconds,
            made=made,
        )

    def directory(self, context: Context) -> Path:
        """Return the artifact's folder."""
        return context.store.directory(self.stage, self.key)


@dataclass
class ArtifactPolicy(CachePolicy):
    """Prefect cache policy: the key is the artifact's key, and a record without a whole artifact is forgotten."""

    recipe: Callable[..., Recipe] | None = None

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Return the artifact's key, or None where its inputs are faulty: the task itself then says what is wrong."""
        assert self.recipe is not None
        context: Context = inputs["context"]
        try:
            recipe = self.recipe(**inputs)
        except (UserError, OSError):
            return None
        record = context.results / f"{recipe.stage}-{recipe.key}"
        if recipe.stage in context.refresh or context.store.find(recipe.stage, recipe.key) is None:
            record.unlink(missing_ok=True)
        return record.name


def stage(
    recipe: Callable[..., Recipe], *, worker: Worker, plan: Callable[..., Plan | None] | None = None, **options: Any
) -> Callable[[Callable[..., Mapping[str, Any]]], Task[..., Ref]]:
    """Make a stage's task of `build(directory, context, **inputs) -> counts`, which fills an empty folder.

    `recipe(context, **inputs)` takes what the task takes and says what the artifact is made from; a `build` with a parameter
    `made_from` gets it. `plan(context, **inputs)`, if there is one, says where it is made beside others: `build` begins when
    there is room, and gets it as `plan`.
    """

    def decorate(build: Callable[..., Mapping[str, Any]]) -> Task[..., Ref]:
        whole = inspect.signature(build)
        own = ("directory", "made_from", "plan")
        parameters = [parameter for name, parameter in whole.parameters.items() if name not in own]
        signature = whole.replace(parameters=parameters, return_annotation=Ref)

        @functools.wraps(build)
        def make(*args: Any, **kwargs: Any) -> Ref:
            inputs = dict(signature.bind(*args, **kwargs).arguments)
            made_from = recipe(**inputs)
            given = {"made_from": made_from} if "made_from" in whole.parameters else {}
            return _make(made_from, functools.partial(build, **given), inputs, worker, plan)

        make.__signature__ = signature  # type: ignore[attr-defined]
        policy = ArtifactPolicy(recipe=recipe)
        return Task(make, name=build.__name__, cache_policy=policy, result_serializer="json", **options)

    return decorate


def _make(
    recipe: Recipe,
    build: Callable[..., Mapping[str, Any]],
    inputs: dict[str, Any],
    worker: Worker,
    plan: Callable[..., Plan | None] | None,
) -> Ref:
    context: Context = inputs["context"]

    def make() -> Artifact:
        planned = {"plan": plan(**inputs)} if plan else {}
        with turn(planned.get("plan")):
            return context.store.make(recipe, lambda directory: build(directory=directory, **planned, **inputs))

    def find_or_make() -> Ref:
        artifact = None if recipe.stage in context.refresh else context.store.find(recipe.stage, recipe.key)
        return Ref.to(artifact, made=False) if artifact else Ref.to(_run_on(worker, make), made=True)

    return _once(context.store.directory(recipe.stage, recipe.key), find_or_make)


def _once(directory: Path, work: Callable[[], Ref]) -> Ref:
    """Return the work's result, or wait for it where another task is at the same artifact: two folds may be alike."""
    mine: Future[Ref] = Future()
    future = _under_way.setdefault(directory, mine)
    if future is not mine:
        return future.result().model_copy(update={"made": False})
    try:
        mine.set_result(work())
    except BaseException as error:
        mine.set_exception(error)
        raise
    finally:
        del _under_way[directory]
    return mine.result()


def _run_on(worker: Worker, work: Callable[[], Result]) -> Result:
    with _pools_lock:
        if worker not in _pools:
            _pools[worker] = ThreadPoolExecutor(max_workers=_threads(worker), thread_name_prefix=worker)
        future = _pools[worker].submit(contextvars.copy_context().run, _work_as, worker, work)
    return future.result()


def _work_as(worker: Worker, work: Callable[[], Result]) -> Result:
    with {"device": _machine.alone, "model": _machine.shared}.get(worker, nullcontext)():
        return work()


def _threads(worker: Worker) -> int:
    if worker == "extractor":
        from pipeline_lib.features.extraction import shards_at_once

        return shards_at_once()
    return {"device": 1, "model": MOST_MODELS}.get(worker) or num_cores()


def cancel_waiting_work() -> None:
    """Drop what no worker has begun, and what other processes are at, so that a failed run ends as soon as the rest does."""
    with _pools_lock:
        for pool in _pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        _pools.clear()
    end_workers()
