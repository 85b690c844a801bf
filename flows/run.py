"""One run of the pipeline: submits each stage's tasks, gathers what they return, and tells MLflow, Prefect and the terminal.

Stages are submitted at once and Prefect starts each task when what it needs is there, so that shards flow from one stage into
the next. Only `fetch` is waited for, since it says how many shards there are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture, as_completed

import tasks.chunk
import tasks.evaluate
import tasks.features
import tasks.fetch
import tasks.finetune
import tasks.heatmaps
import tasks.report
import tasks.subsample
import tasks.train
from flows import records, summary
from pipeline_lib.fetch.collection import videos_root
from pipeline_lib.params import STAGES, Params
from pipeline_lib.tables import read_shards
from pipeline_lib.workspace import hold_workspace, workspace_id
from tasks import progress
from tasks.stage import Context, Ref, cancel_waiting_work

logger = logging.getLogger(__name__)

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
class Run:
    """A run under way. Its methods carry the names of the stages."""

    params: Params
    context: Context
    record: records.Record
    until: str | None
    futures: dict[str, list[Future]] = field(default_factory=dict)
    results: dict[str, StageResult] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    shard_names: list[str] = field(default_factory=list)
    quarantine: PrefectFuture[Any] | None = None
    """Fails if subsampling lost more videos than allowed."""

    def fetch(self) -> Ref:
        """Fetch the collection and wait for it."""
        self._submit("fetch", tasks.fetch.fetch, params=self.params.fetch)
        return self._gather("fetch").refs[0]

    def subsample(self, collection: Ref) -> list[Future]:
        """Subsample every shard."""
        directory = collection.directory(self.context)
        shards = read_shards(directory, self.params.subsample.shard_videos)
        progress.expect("subsample", sum(len(videos) for videos in shards.values()))
        self.shard_names = list(shards)
        root = videos_root(self.params.fetch, directory)
        for shard, videos in shards.items():
            self._submit(
                "subsample", tasks.subsample.subsample, shard=shard, videos=videos, root=root, params=self.params.subsample
            )
        shard_futures: list[Any] = self.futures["subsample"]
        self.quarantine = tasks.subsample.quarantine.submit(
            context=self.context, shards=shard_futures, params=self.params.subsample
        )
        return shard_futures

    def chunk(self, collection: Ref, shards: Sequence[Future]) -> Future:
        """Cut clips, once it is sure that not too many videos are lost."""
        assert self.quarantine is not None
        return self._submit(
            "chunk",
            tasks.chunk.chunk,
            wait_for=[self.quarantine],
            collection=collection,
            shards=shards,
            params=self.params.chunk,
        )

    def finetune(self, clips: Future, shards: Sequence[Future]) -> Future | None:
        """Tune the backbone, if the parameters ask for it."""
        if not self.params.finetune.enabled:
            self._stop_after("finetune")
            return None
        progress.expect("finetune", self.params.finetune.epochs)
        return self._submit(
            "finetune",
            tasks.finetune.finetune,
            clips=clips,
            shards=shards,
            params=self.params.finetune,
            features=self.params.features,
        )

    def features(self, shards: Sequence[Future], backbone: Future | None) -> list[Future]:
        """Extract features shard by shard, each as soon as its frames are there."""
        for name, shard in zip(self.shard_names, shards, strict=True):
            self._submit(
                "features",
                tasks.features.features,
                name=name,
                shard=shard,
                backbone=backbone,
                params=self.params.features,
                chunk=self.params.chunk,
                fps=self.params.subsample.fps,
            )
        return self.futures["features"]

    def train(self, clips: Future, features: Sequence[Future]) -> dict[str, Future]:
        """Train each model under an MLflow run of its own."""
        self._stop_after("features")
        progress.expect("train", self.params.train.epochs * len(self.params.train.models))
        return {
            model: self._submit(
                "train",
                tasks.train.train,
                model=model,
                clips=clips,
                features=features,
                params=self.params.train,
                mlflow_run_id=self.record.open_child(model, self.params),
            )
            for model in self.params.train.models
        }

    def evaluate(
        self, models: dict[str, Future], clips: Future, features: Sequence[Future], collection: Ref
    ) -> dict[str, Future]:
        """Score each model on the test part."""
        return {
            model: self._submit(
                "evaluate",
                tasks.evaluate.evaluate,
                model=model,
                trained=trained,
                clips=clips,
                features=features,
                collection=collection,
                params=self.params.evaluate,
                fps=self.params.subsample.fps,
            )
            for model, trained in models.items()
        }

    def heatmaps(self, scores: dict[str, Future], shards: Sequence[Future]) -> None:
        """Draw each model's attention."""
        shown = self.params.heatmaps.successes + self.params.heatmaps.failures
        progress.expect("heatmaps", shown * len(scores))
        for model, evaluated in scores.items():
            self._submit(
                "heatmaps",
                tasks.heatmaps.heatmaps,
                model=model,
                evaluated=evaluated,
                shards=shards,
                params=self.params.heatmaps,
                fps=self.params.subsample.fps,
            )

    def report(self) -> None:
        """Write the page, once everything it shows is there."""
        self._stop_after("heatmaps")
        self.gather()
        run = summary.describe_report(self)
        self._submit("report", tasks.report.report, run=run, run_id=self.record.parent_run_id)
        self._gather("report")

    def _submit(self, stage: str, task: Task[..., Ref], wait_for: Sequence[PrefectFuture[Any]] = (), **inputs: Any) -> Future:
        """Submit a task of a stage, unless the run ends before that stage."""
        if self.until and STAGES.index(stage) > STAGES.index(self.until):
            raise StageReached
        task = task.with_options(result_storage=self.context.results)
        future: Future = task.submit(context=self.context, wait_for=list(wait_for), **inputs)
        self.futures.setdefault(stage, []).append(future)
        return future

    def _stop_after(self, stage: str) -> None:
        if self.until and STAGES.index(stage) >= STAGES.index(self.until):
            raise StageReached

    def gather(self) -> None:
        """Wait for every stage submitted, in order."""
        for stage in self.futures:
            self._gather(stage)

    def _gather(self, stage: str) -> StageResult:
        """Wait for a stage and record what came of it."""
        if stage in self.results:
            return self.results[stage]
        for future in as_completed(self.futures[stage]):
            future.result()  # the first failure ends the run
        result = StageResult([_answer(future) for future in self.futures[stage]])
        if stage == "subsample" and self.quarantine:
            self.quarantine.result()
            progress.expect("features", sum(ref.counts["frames"] for ref in result.refs))
        self.results[stage] = result
        progress.finish(stage)
        self.record.log_stage(self, stage, result)
        return result


@contextmanager
def open_run(params: Params, *, until: str | None, refresh: Sequence[str]) -> Iterator[Run]:
    """Hold the workspace, open the run's records, and see to it that both are closed, whatever happens."""
    unknown = [stage for stage in (*refresh, *filter(None, [until])) if stage not in STAGES]
    if unknown:
        raise ValueError(f"{unknown[0]} is not a stage; the stages are {', '.join(STAGES)}")
    workspace = Path(params.workspace).expanduser().absolute()
    context = Context(workspace=workspace, refresh=tuple(refresh))
    with hold_workspace(workspace):
        context.store.remove_drafts()
        progress.begin()
        record = records.open_record(params, workspace, workspace_id(workspace))
        run = Run(params, context, record, until)
        try:
            with suppress(StageReached):
                yield run
            run.gather()
            run.summary.update(summary.summarise(run))
            record.close("FINISHED", run)
        except BaseException as error:
            cancel_waiting_work()
            record.close("FAILED" if isinstance(error, Exception) else "KILLED", run)
            raise
