"""Submission of a run's tasks, and what their failures mean.

A failed task that all models need ends the run. A failed task of one model, or of the controls, does not: the other tasks
are finished first (docs/decisions/2026-11-29-failures.md).
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture

from pipeline_lib.addresses import redact_text
from pipeline_lib.compute.engine import WorkerLostError
from pipeline_lib.errors import UserError
from pipeline_lib.params import STAGES, Params
from tasks.stage import RETRIES, Context, Ref, Refs

logger = logging.getLogger(__name__)

Future = PrefectFuture[Any]
ISOLATED = ("train", "evaluate", "controls", "results", "heatmaps")
"""Kinds of work whose failure does not end the run."""
STAGE_OF = {"quarantine": "subsample", "check": "train", "controls": "evaluate", "results": "evaluate"}
"""Stage of each kind of work that is not named after its stage."""


class StageReached(Exception):  # noqa: N818 - not an error: the stage asked for has been submitted
    """Ends the flow's body after the stage given as `until`."""


class FailedWorkError(UserError):
    """Some tasks failed, and all others finished; one line a failure."""


@dataclass(frozen=True)
class StageResult:
    """What a stage's tasks returned, in order of submission."""

    refs: list[Ref]

    @property
    def cache(self) -> str:
        """`hit` if all artifacts were found in the cache, `miss` if none was, else `partial`."""
        made = {ref.made for ref in self.refs}
        return "partial" if len(made) == 2 else "miss" if made == {True} else "hit"

    @property
    def seconds(self) -> float:
        """Time spent on artifacts made in this run."""
        return sum(ref.seconds for ref in self.refs if ref.made)


@dataclass(frozen=True)
class Work:
    """A submitted task of the run."""

    kind: str
    key: Any
    """Unique among tasks of its kind: a shard, a fold, or a model's name, fold and seed."""
    label: str
    """Readable form of the key; empty if it is the only one of its kind."""
    future: PrefectFuture[Any]

    @property
    def stage(self) -> str:
        """The stage it belongs to."""
        return STAGE_OF.get(self.kind, self.kind)

    def result(self) -> Ref | Refs | None:
        """Wait for the task and return its references; None for a check, or if the task never started as an input failed.

        A reference from Prefect's cache still has `made=True` from the run that made it, so it is corrected here.
        """
        self.future.wait()
        if self.future.state.name == "NotReady":
            return None
        try:
            result = self.future.result()
        except WorkerLostError as error:
            raise UserError(
                f"{error}, {1 + RETRIES} times; finished work is kept: run again, with more memory or fewer training runs "
                "side by side (train.workers)"
            ) from None
        if self.future.state.name != "Cached":
            return result
        found = {name: ref.model_copy(update={"made": False}) for name, ref in as_refs(result).items()}
        return found[""] if isinstance(result, Ref) else found


def as_refs(result: Ref | Refs) -> Refs:
    """Return what a task returned as references by name; a single one has an empty name."""
    return {"": result} if isinstance(result, Ref) else result


@dataclass
class Execution:
    """The tasks of a run in progress."""

    params: Params
    context: Context
    until: str | None
    works: list[Work] = field(default_factory=list)
    refs: defaultdict[str, dict[Any, Ref]] = field(default_factory=lambda: defaultdict(dict))
    """References that finished tasks returned, by kind and key; those of several artifacts are only in `artifacts`."""
    artifacts: dict[tuple[str, Any], list[Ref]] = field(default_factory=dict)
    """References to all artifacts of finished tasks, by kind and key."""
    results: dict[str, StageResult] = field(default_factory=dict)
    """Finished stages with at least one artifact."""
    failures: list[str] = field(default_factory=list)
    """One line for each failure that did not end the run."""
    _num_open: Counter[str] = field(default_factory=Counter)
    """Number of unfinished tasks of each stage."""
    _stored: dict[Task[..., Any], Task[..., Any]] = field(default_factory=dict)
    """Each task with its Prefect results stored in the workspace."""
    _ended: SimpleQueue[Work] = field(default_factory=SimpleQueue)

    def submit(
        self,
        kind: str,
        task: Task[..., Any],
        key: Hashable = None,
        label: str = "",
        wait_for: Sequence[PrefectFuture[Any]] = (),
        **inputs: Any,
    ) -> Future:
        """Submit a task that returns one artifact, or several.

        Raises:
            StageReached: the run ends before the task's stage.
        """
        if task not in self._stored:  # takes milliseconds, and there are hundreds of shards
            self._stored[task] = task.with_options(result_storage=self.context.results)
        return self._submit(kind, self._stored[task], key, label, wait_for, inputs)

    def check(self, kind: str, task: Task[..., None], key: Hashable = None, **inputs: Any) -> PrefectFuture[Any]:
        """Submit a task without an artifact, which fails if the run cannot continue."""
        return self._submit(kind, task, key, "", (), inputs)

    def _submit(
        self,
        kind: str,
        task: Task[..., Any],
        key: Hashable,
        label: str,
        wait_for: Sequence[PrefectFuture[Any]],
        inputs: dict[str, Any],
    ) -> PrefectFuture[Any]:
        stage = STAGE_OF.get(kind, kind)
        if self.until and STAGES.index(stage) > STAGES.index(self.until):
            raise StageReached
        work = Work(kind, key, label, task.submit(context=self.context, wait_for=list(wait_for), **inputs))
        self.works.append(work)
        self._num_open[stage] += 1
        work.future.add_done_callback(lambda _: self._ended.put(work))
        return work.future

    def stop_after(self, stage: str) -> None:
        """End the flow's body here if `until` is this stage or an earlier one."""
        if self.until and STAGES.index(stage) >= STAGES.index(self.until):
            raise StageReached

    def gather(self) -> None:
        """Wait for all tasks, and record each as it ends."""
        self._settle_until(lambda: not self._num_open.total())

    def gather_stage(self, stage: str) -> StageResult:
        """Wait for a stage, and record each task that ends meanwhile, whatever its stage."""
        self._settle_until(lambda: not self._num_open[stage])
        return self.results[stage]

    def settle_ended(self) -> None:
        """Record the tasks that have ended already, and submit no more, because the run is about to fail."""
        self.until = STAGES[0]
        while not self._ended.empty():
            with suppress(Exception):
                self._settle(self._ended.get())

    def _settle_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._settle(self._ended.get())

    def _settle(self, work: Work) -> None:
        """Record a task that has ended, and close its stage after the last one.

        Raises:
            Exception: what the task raised, if all models need it.
        """
        self._num_open[work.stage] -= 1
        is_failure = False
        try:
            result = work.result()
        except Exception as error:
            if work.kind not in ISOLATED:
                raise
            result, is_failure = None, True
            self._add_failure(work, error)
        ref = result if isinstance(result, Ref) else None
        if ref:
            self.refs[work.kind][work.key] = ref
        if result:
            self.artifacts[work.kind, work.key] = list(as_refs(result).values())
        self.ended(work, ref, is_failure=is_failure)
        if not self._num_open[work.stage]:
            self._close_stage(work.stage)

    def _add_failure(self, work: Work, error: Exception) -> None:
        """Record and log a failure, with its traceback unless it is a UserError."""
        is_bug = not isinstance(error, UserError)
        reason = redact_text(next(iter(str(error).splitlines()), ""))
        name = " ".join(filter(None, (work.kind, work.label)))
        self.failures.append(f"{name} failed: {type(error).__name__ + ': ' if is_bug else ''}{reason}")
        trace = redact_text("".join(traceback.format_exception(error))) if is_bug else ""
        logger.error("%s", f"{self.failures[-1]}\n{trace}".rstrip())

    def _close_stage(self, stage: str) -> None:
        finished = [self.artifacts.get((work.kind, work.key), []) for work in self.works if work.stage == stage]
        refs = [ref for artifacts in finished for ref in artifacts]
        if refs:
            self.results[stage] = StageResult(refs)
            self.stage_over(stage, self.results[stage])

    def raise_failures(self) -> None:
        """Fail if any task failed.

        Raises:
            FailedWorkError: with one line for each failure.
        """
        if self.failures:
            raise FailedWorkError("\n".join(self.failures))

    def ended(self, work: Work, ref: Ref | None, *, is_failure: bool) -> None:
        """Hook: called when a task has ended; may submit more tasks."""

    def stage_over(self, stage: str, result: StageResult) -> None:
        """Hook: called when a stage has ended with at least one artifact."""
