"""What the tasks of all stages share: context, reference to an artifact, cache policy and retry policy.

`@stage(recipe)` turns a function that fills a folder into a Prefect task whose cache key is the artifact's key. A cached result
is used only if its artifact is complete. If two tasks of one run make the same artifact, the second waits for the first:
Prefect's transaction locks the key.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.locking.memory import MemoryLockManager
from prefect.transactions import IsolationLevel
from pydantic import BaseModel, ConfigDict

from pipeline_lib.artifacts import Artifact, Recipe, Store
from pipeline_lib.compute.engine import WorkerLostError, take_seconds_waited
from pipeline_lib.errors import UserError


@functools.lru_cache(maxsize=4)
def open_store(workspace: Path) -> Store:
    """Return the process's store of a workspace."""
    return Store(workspace)


class Context(BaseModel):
    """The workspace of a run, and the stages to recompute. Never part of a key."""

    model_config = ConfigDict(frozen=True)
    workspace: Path
    refresh: tuple[str, ...] = ()

    @property
    def store(self) -> Store:
        """The workspace's artifacts."""
        return open_store(self.workspace)

    @property
    def results(self) -> Path:
        """The folder of Prefect's cached results."""
        return self.store.results


class Ref(BaseModel):
    """Reference to an artifact, returned by a stage's task. It holds no path, so a workspace can be moved."""

    model_config = ConfigDict(frozen=True)
    stage: str
    key: str
    content_key: str
    counts: dict[str, Any]
    seconds: float
    made: bool
    """Whether this task run made the artifact, rather than found it in the cache."""

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
    """Prefect cache policy: the key is the artifact's key; a result whose artifact is missing or damaged is deleted."""

    recipe: Callable[..., Recipe] | None = None

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Return the artifact's key, or None if its inputs are invalid: the task itself then raises the error."""
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


LOCKS: Any = MemoryLockManager()  # type: ignore[no-untyped-call]
RETRIES = 2
"""Retries of a task whose worker died."""


def stage(recipe: Callable[..., Recipe], **options: Any) -> Callable[[Callable[..., Mapping[str, Any]]], Task[..., Ref]]:
    """Turn `build(directory, context, **inputs) -> counts`, which fills an empty folder, into a stage's task.

    `recipe(context, **inputs)` takes the task's arguments and returns what the artifact depends on. It is passed to a `build`
    with a parameter `made_from`. Only a task whose worker died is retried.
    """

    def decorate(build: Callable[..., Mapping[str, Any]]) -> Task[..., Ref]:
        whole = inspect.signature(build)
        parameters = [parameter for name, parameter in whole.parameters.items() if name not in ("directory", "made_from")]
        signature = whole.replace(parameters=parameters, return_annotation=Ref)

        @functools.wraps(build)
        def make(*args: Any, **kwargs: Any) -> Ref:
            inputs = dict(signature.bind(*args, **kwargs).arguments)
            made_from = recipe(**inputs)
            given = {"made_from": made_from} if "made_from" in whole.parameters else {}
            return _find_or_make(inputs["context"], made_from, functools.partial(build, **given, **inputs))

        make.__signature__ = signature  # type: ignore[attr-defined]
        policy = ArtifactPolicy(recipe=recipe, isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=LOCKS)
        return Task(
            make,
            name=build.__name__,
            cache_policy=policy,
            result_serializer="json",
            retries=RETRIES,
            retry_delay_seconds=1,
            retry_condition_fn=_has_lost_its_worker,
            **options,
        )

    return decorate


def _find_or_make(context: Context, recipe: Recipe, build: Callable[..., Mapping[str, Any]]) -> Ref:
    artifact = None if recipe.stage in context.refresh else context.store.find(recipe.stage, recipe.key)
    if artifact:
        return Ref.to(artifact, made=False)
    take_seconds_waited()
    artifact = context.store.make(recipe, lambda directory: build(directory=directory), take_seconds_waited)
    return Ref.to(artifact, made=True)


def _has_lost_its_worker(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), WorkerLostError)
