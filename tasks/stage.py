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

from pipeline_lib.artifacts import Artifact, Recipe, Store, digest
from pipeline_lib.artifacts.shipping import LocalFiles
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.compute.engine import WorkerLostError, take_seconds_waited
from pipeline_lib.errors import UserError
from tasks.progress import grow


@functools.lru_cache(maxsize=4)
def open_store(workspace: Workspace) -> Store:
    """Return the process's store of a workspace."""
    return workspace.open(grow)


class Context(BaseModel):
    """The workspace of a run, and the stages to recompute. Never part of a key."""

    model_config = ConfigDict(frozen=True)
    workspace: Workspace
    refresh: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The workspace's folder on this machine."""
        return self.workspace.folder

    @property
    def store(self) -> Store:
        """The workspace's artifacts."""
        return open_store(self.workspace)

    def files(self, paths: Mapping[str, Path]) -> LocalFiles:
        """Return files by name; those of an object store are brought to the machine that asks for them."""
        return LocalFiles(paths, self.store)

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
        """Return the path of the artifact's folder, for `run_at`, which brings its files to where the work runs."""
        return context.store.directory(self.stage, self.key)

    def checkout(self, context: Context, *names: str) -> Path:
        """Return the artifact's folder whose named files and folders, by default all, are on this machine."""
        return context.store.checkout(self, *names)

    def file(self, context: Context, name: str) -> Path:
        """Return the path of one of the artifact's files, which is on this machine; it may not exist."""
        return context.store.file(self, name)


Refs = dict[str, Ref]
"""References to the artifacts that one task makes together, by name."""


@dataclass
class ArtifactPolicy(CachePolicy):
    """Prefect cache policy: the key is that of the artifacts; a result with a missing or damaged artifact is deleted."""

    recipe: Callable[..., Recipe | Mapping[str, Recipe]] | None = None

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Return the artifacts' key, or None if their inputs are invalid: the task itself then raises the error."""
        assert self.recipe is not None
        context: Context = inputs["context"]
        try:
            found = self.recipe(**inputs)
        except (UserError, OSError):
            return None
        recipes = [found] if isinstance(found, Recipe) else list(found.values())
        key = recipes[0].key if len(recipes) == 1 else digest([recipe.key for recipe in recipes])
        record = context.results / f"{recipes[0].stage}-{key}"
        if any(_find(context, recipe) is None for recipe in recipes):
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
        signature = _without(whole, "directory", "made_from").replace(return_annotation=Ref)

        @functools.wraps(build)
        def make(*args: Any, **kwargs: Any) -> Ref:
            inputs = dict(signature.bind(*args, **kwargs).arguments)
            made_from = recipe(**inputs)
            given = {"made_from": made_from} if "made_from" in whole.parameters else {}

            def build_one(directories: Mapping[str, Path]) -> Mapping[str, Mapping[str, Any]]:
                return {"": build(directory=directories[""], **given, **inputs)}

            return _find_or_make(inputs["context"], {"": made_from}, build_one)[""]

        return _as_task(make, signature, recipe, options)

    return decorate


def stage_of_several(
    recipes: Callable[..., Mapping[str, Recipe]], **options: Any
) -> Callable[[Callable[..., Mapping[str, Mapping[str, Any]]]], Task[..., Refs]]:
    """Turn `build(directories, context, **inputs) -> counts`, which fills several folders at once, into a stage's task.

    As `stage`, but `recipes` returns several recipes by name. `build` gets the folders, by name, of the artifacts that are not
    in the store, and returns the counts of each.
    """

    def decorate(build: Callable[..., Mapping[str, Mapping[str, Any]]]) -> Task[..., Refs]:
        whole = inspect.signature(build)
        signature = _without(whole, "directories").replace(return_annotation=Refs)

        @functools.wraps(build)
        def make(*args: Any, **kwargs: Any) -> Refs:
            inputs = dict(signature.bind(*args, **kwargs).arguments)
            return _find_or_make(inputs["context"], recipes(**inputs), functools.partial(build, **inputs))

        return _as_task(make, signature, recipes, options)

    return decorate


def _without(signature: inspect.Signature, *names: str) -> inspect.Signature:
    return signature.replace(parameters=[parameter for name, parameter in signature.parameters.items() if name not in names])


def _as_task(
    make: Callable[..., Any],
    signature: inspect.Signature,
    recipe: Callable[..., Recipe | Mapping[str, Recipe]],
    options: dict[str, Any],
) -> Task[..., Any]:
    make.__signature__ = signature  # type: ignore[attr-defined]
    policy = ArtifactPolicy(recipe=recipe, isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=LOCKS)
    return Task(
        make,
        name=make.__name__,
        cache_policy=policy,
        result_serializer="json",
        retries=RETRIES,
        retry_delay_seconds=1,
        retry_condition_fn=_has_lost_its_worker,
        **options,
    )


def _find(context: Context, recipe: Recipe) -> Artifact | None:
    """Return the recipe's artifact if it is whole, and its stage is not to be refreshed."""
    return None if recipe.stage in context.refresh else context.store.find(recipe.stage, recipe.key)


def _find_or_make(
    context: Context,
    recipes: Mapping[str, Recipe],
    build: Callable[..., Mapping[str, Mapping[str, Any]]],
) -> Refs:
    names: dict[str, str] = {}
    for name, recipe in recipes.items():
        names.setdefault(recipe.key, name)  # equal recipes are one artifact, made once
    wanted = {name: recipe for name, recipe in recipes.items() if names[recipe.key] == name}
    refs = {name: Ref.to(found, made=False) for name, recipe in wanted.items() if (found := _find(context, recipe))}
    if missing := {name: recipe for name, recipe in wanted.items() if name not in refs}:
        take_seconds_waited()
        refreshed = any(recipe.stage in context.refresh for recipe in missing.values())
        made = context.store.make_several(
            missing, lambda drafts: build(directories=drafts), take_seconds_waited, replace=refreshed
        )
        refs |= {name: Ref.to(artifact, made=True) for name, artifact in made.items()}
    return {name: refs[names[recipe.key]] for name, recipe in recipes.items()}


def _has_lost_its_worker(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), WorkerLostError)
