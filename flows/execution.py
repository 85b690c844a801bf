"""How a run's stages are submitted, waited for and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture, as_completed

from pipeline_lib.params import STAGES, Params
from tasks.stage import Context, Ref

Future = PrefectFuture[Ref]


class StageReached(Exception):  # noqa: N818 - not an error: the stage asked for has been submitted
    """Ends the flow's body after the stage given as `until`."""


@dataclass(frozen=True)
class StageResult:
    """What a stage's tasks returned, in the order of their submission."""

    refs: list[Ref]

    @property
    def cache(self) -> str:
        """`hit` if nothing was made, `miss` if everything was, else `partial`."""
        made = {ref.made for ref in self.refs}
        return "partial" if len(made) == 2 else "miss" if made == {True} else "hit"

    @property
    def seconds(self) -> float:
        """Time spent on what was made in this run."""
        return sum(ref.seconds for ref in self.refs if ref.made)


def _answer(future: Future) -> Ref:
    """Return a finished task's reference; a cached one still tells of the run that made it, so it is set right."""
    ref = future.result()
    return ref.model_copy(update={"made": False}) if future.state.name == "Cached" else ref


@dataclass
class Execution:
    """Stages under way."""

    params: Params
    context: Context
    until: str | None
    futures: dict[str, list[Future]] = field(default_factory=dict)
    results: dict[str, StageResult] = field(default_factory=dict)

    def submit(self, stage: str, task: Task[..., Ref], wait_for: Sequence[PrefectFuture[Any]] = (), **inputs: Any) -> Future:
        """Submit a task of a stage, unless the run ends before that stage."""
        if self.until and STAGES.index(stage) > STAGES.index(self.until):
            raise StageReached
        task = task.with_options(result_storage=self.context.results)
        future: Future = task.submit(context=self.context, wait_for=list(wait_for), **inputs)
        self.futures.setdefault(stage, []).append(future)
        return future

    def stop_after(self, stage: str) -> None:
        """End the flow's body here if it is to end after this stage."""
        if self.until and STAGES.index(stage) >= STAGES.index(self.until):
            raise StageReached

    def gather(self) -> None:
        """Wait for every stage submitted, in order."""
        for stage in self.futures:
            self.gather_stage(stage)

    def gather_stage(self, stage: str) -> StageResult:
        """Wait for a stage and record what came of it."""
        if stage in self.results:
            return self.results[stage]
        for future in as_completed(self.futures[stage]):
            future.result()  # the first failure ends the run
        result = StageResult([_answer(future) for future in self.futures[stage]])
        self.results[stage] = result
        self.gathered(stage, result)
        return result

    def gathered(self, stage: str, result: StageResult) -> None:
        """Do what is to be done when a stage is over."""
