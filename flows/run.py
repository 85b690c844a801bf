"""One run of the pipeline: submits each stage's tasks, waits for them, and reports to MLflow, Prefect and the terminal.

All stages are submitted at once. Prefect starts a task when its inputs are ready, so a shard does not wait for other shards.
Before the report, the flow waits for two stages only: `fetch` determines the shards, and `sweep` determines what to train.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tasks.chunk
import tasks.evaluate
import tasks.features
import tasks.fetch
import tasks.finetune
import tasks.heatmaps
import tasks.report
import tasks.subsample
import tasks.sweep
import tasks.train
from flows import records, summary, terminal
from flows.execution import FailedWorkError, Future, StageReached, StageResult, Work
from flows.plan import (
    Overrides,
    TestedRun,
    cache_bytes,
    engine_for,
    plan_fusions,
    plan_training_runs,
    side_by_side,
)
from flows.state import RunState
from pipeline_lib.artifacts import Store, layout
from pipeline_lib.artifacts.lease import hold_lease
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.tables import read_shards
from pipeline_lib.artifacts.workspace import locate_workspace
from pipeline_lib.artifacts.workspace_lock import hold_workspace, workspace_id
from pipeline_lib.compute.engine import cancel_work
from pipeline_lib.errors import UserError, naming
from pipeline_lib.fetch.collection import videos_root
from pipeline_lib.params import STAGES, Params, StreamParams
from tasks import progress
from tasks.evaluate import RunKey
from tasks.stage import Context, Ref

if TYPE_CHECKING:
    from prefect import Task

ByFold = Mapping[int, Future]
BackbonesByFold = Mapping[int, Mapping[str, Future]]
"""Fine-tuned backbones by fold and stream."""
FeaturesByFold = Mapping[int, Mapping[str, Sequence[Future]]]
"""Features by fold and stream: one future a shard, of which each returns all streams that were extracted with it."""


@dataclass
class Run(RunState):
    """A run in progress, with one method a stage."""

    record: records.Record = field(kw_only=True)
    _num_works: Counter[RunKey] = field(default_factory=Counter)
    """Number of unfinished tasks of each training run."""
    num_extractions: int = 0
    """Number of streams to extract, each counted once a fold if its backbone is fine-tuned."""
    _failed: set[RunKey] = field(default_factory=set)
    """Training runs with a failed task."""

    def fetch(self) -> Ref:
        """Fetch the collection and wait for it."""
        self._check_streams()
        self.submit("fetch", tasks.fetch.fetch, params=self.params.fetch)
        return self.gather_stage("fetch").refs[0]

    def _check_streams(self) -> None:
        """Find a mistake in a stream's backbone or weights before a collection is fetched for it, in a new workspace.

        Raises:
            UserError: there is no such backbone or file, or the backbone does not take what the stream gives.
        """
        is_wanted = self.until is None or STAGES.index(self.until) >= STAGES.index("finetune")
        if not is_wanted or any(self.context.store.artifacts("features")):
            return
        from pipeline_lib.backbones.build import check_name  # imports PyTorch, which a run from the cache does not need

        for name, stream in self.params.features.all_streams.items():
            with naming(f"stream {name}"):
                check_name(stream.backbone, "clip" if stream.input == "clip" else "image")
                tasks.features.backbone_recipe(self.context, stream)

    def subsample(self, collection: Ref) -> list[Future]:
        """Subsample every shard."""
        directory = collection.checkout(self.context, layout.COLLECTION)
        shards = read_shards(directory, self.params.subsample.shard_videos)
        progress.expect("subsample", sum(len(videos) for videos in shards.values()))
        self.shard_names = list(shards)
        root = videos_root(self.params.fetch, directory)
        params = self.params.subsample
        return [
            self.submit("subsample", tasks.subsample.subsample, shard, shard=shard, videos=videos, root=root, params=params)
            for shard, videos in shards.items()
        ]

    def chunk(self, collection: Ref, shards: Sequence[Future]) -> ByFold:
        """Cut clips and assign them to splits for each fold, after the check on undecodable videos."""
        quarantine = self.check("quarantine", tasks.subsample.quarantine, shards=shards, params=self.params.subsample)
        return {
            fold: self.submit(
                "chunk",
                tasks.chunk.chunk,
                fold,
                wait_for=[quarantine],
                collection=collection,
                shards=shards,
                params=self.params.chunk.of_fold(fold),
            )
            for fold in self.params.chunk.folds
        }

    def finetune(self, clips: ByFold, shards: Sequence[Future]) -> BackbonesByFold:
        """Fine-tune the backbones of streams on each fold's training split, if enabled."""
        if not self.params.finetune.enabled:
            self.stop_after("finetune")
            return {}
        streams = self.params.tuned_streams
        progress.expect("finetune", self.params.finetune.epochs * len(clips) * len(streams))
        return {
            fold: {
                name: self.submit(
                    "finetune",
                    tasks.finetune.finetune,
                    (fold, name),
                    name=name,
                    clips=table,
                    shards=shards,
                    params=self.params.finetune,
                    stream=stream,
                )
                for name, stream in streams.items()
            }
            for fold, table in clips.items()
        }

    def features(self, shards: Sequence[Future], backbones: BackbonesByFold) -> FeaturesByFold:
        """Extract the streams of each shard: together for all folds, and once a fold those with a fine-tuned backbone."""
        tuned = self.params.tuned_streams if backbones else {}
        frozen = {name: stream for name, stream in self.params.features.all_streams.items() if name not in tuned}
        shared = self._extract(shards, frozen) if frozen else {}
        return {
            fold: {**shared, **(self._extract(shards, tuned, backbones[fold], fold) if tuned else {})}
            for fold in self.params.chunk.folds
        }

    def _extract(
        self,
        shards: Sequence[Future],
        streams: Mapping[str, StreamParams],
        backbones: Mapping[str, Future] | None = None,
        fold: int | None = None,
    ) -> dict[str, Sequence[Future]]:
        self.num_extractions += len(streams)
        extracted = [
            self.submit(
                "features",
                tasks.features.features,
                (fold, name),
                name=name,
                shard=shard,
                backbones=backbones or {},
                streams=streams,
                chunk=self.params.chunk,
                fps=self.params.subsample.fps,
            )
            for name, shard in zip(self.shard_names, shards, strict=True)
        ]
        return dict.fromkeys(streams, extracted)

    def sweep(self, clips: ByFold, features: FeaturesByFold) -> Overrides:
        """Search hyper-parameters on the first fold, if enabled, and wait for the best of each model."""
        if not self.params.sweep.enabled:
            self.stop_after("sweep")
            return {}
        fold, models = self.params.chunk.folds[0], self.params.sweep.models
        self.stop_after("features")
        progress.expect("sweep", self.params.sweep.trials * len(models))
        for model in models:
            self.submit(
                "sweep",
                tasks.sweep.sweep,
                model,
                model=model,
                clips=clips[fold],
                features=_of(features[fold], self.params.streams_of(model)),
                params=self.params.sweep,
                base=self.params.train.of(model),
                mlflow_run=self.record.open_sweep(model),
            )
        self.gather_stage("sweep")
        self.stop_after("sweep")
        self.found = {model: tasks.sweep.read_best(self.refs["sweep"][model].checkout(self.context)) for model in models}
        return self.found

    def train(self, clips: ByFold, features: FeaturesByFold, overrides: Overrides) -> list[Future]:
        """Train each model on each fold with each seed, under an MLflow run of its own."""
        self.stop_after("sweep")
        self.training_runs = plan_training_runs(self.params, overrides)
        progress.expect("train", sum(training.params.epochs for training in self.training_runs))
        device = self.params.train.device
        checks = {
            fold: self.check("check", tasks.train.check, fold, fold=fold, clips=table, device=device)
            for fold, table in clips.items()
        }
        return [
            self._submit_for(
                training,
                "train",
                tasks.train.train,
                wait_for=[checks[training.fold]],
                clips=clips[training.fold],
                features=_of(features[training.fold], training.streams),
                params=training.params,
                side_by_side=side_by_side(self.params),
                mlflow_run=self.record.open_child(training, self.params),
            )
            for training in self.training_runs
        ]

    def _submit_for(self, tested: TestedRun, kind: str, task: Task[..., Ref], **inputs: Any) -> Future:
        """Submit a task of one training run or fusion."""
        future = self.submit(kind, task, tested.key, tested.label, training_run=tested.label, **inputs)
        self._num_works[tested.key] += 1
        return future

    def evaluate(
        self, models: Sequence[Future], clips: ByFold, features: FeaturesByFold, shards: Sequence[Future], collection: Ref
    ) -> Sequence[Future]:
        """Score each model on its test split, its fusions, and the controls of each fold; `ended` submits the comparison.

        Returns:
            the evaluations of `tested_runs`.
        """
        for fold, table in clips.items():
            self.submit(
                "controls",
                tasks.evaluate.controls,
                fold,
                f"fold {fold}",
                fold=fold,
                clips=table,
                features=_of(features[fold], (self.params.features.default_stream,)),
                shards=shards,
                params=self.params.evaluate,
                fps=self.params.subsample.fps,
            )
        scores = {
            training.key: self._submit_for(
                training,
                "evaluate",
                tasks.evaluate.evaluate,
                trained=trained,
                clips=clips[training.fold],
                features=_of(features[training.fold], training.streams),
                shards=shards,
                collection=collection,
                params=self.params.evaluate,
                fps=self.params.subsample.fps,
                side_by_side=side_by_side(self.params),
            )
            for training, trained in zip(self.training_runs, models, strict=True)
        }
        return [*scores.values(), *self._fuse(scores, clips, collection)]

    def _fuse(self, scores: Mapping[RunKey, Future], clips: ByFold, collection: Ref) -> list[Future]:
        """Fuse models of the same fold and seed, each fusion under an MLflow run of its own."""
        self.fusion_runs = plan_fusions(self.params)
        for fused in self.fusion_runs:
            self.record.open_fusion(fused)
        return [
            self._submit_for(
                fused,
                "evaluate",
                tasks.evaluate.fusion,
                members=[scores[key] for key in fused.members],
                clips=clips[fused.fold],
                collection=collection,
                params=fused.params,
                fps=self.params.subsample.fps,
            )
            for fused in self.fusion_runs
        ]

    def _compare(self) -> None:
        """Submit the comparison of all evaluated models and controls."""
        evaluated, controls = self.refs["evaluate"], self.refs["controls"]
        keys = [tested.key for tested in self.evaluated_runs]
        if not keys:
            return
        folds = [fold for fold in self.params.chunk.folds if fold in controls]
        self.submit(
            "results",
            tasks.evaluate.results,
            training_runs=keys,
            evaluated=[evaluated[key] for key in keys],
            folds=folds,
            controls=[controls[fold] for fold in folds],
            params=self.params.evaluate,
        )

    def heatmaps(self, scores: Sequence[Future], shards: Sequence[Future]) -> None:
        """Draw the attention of each model that has attention."""
        progress.expect("heatmaps", (self.params.heatmaps.successes + self.params.heatmaps.failures) * len(self.drawn))
        evaluated = dict(zip((tested.key for tested in self.tested_runs), scores, strict=True))
        for tested in self.drawn:
            self._submit_for(
                tested,
                "heatmaps",
                tasks.heatmaps.heatmaps,
                evaluated=evaluated[tested.key],
                shards=shards,
                params=self.params.heatmaps,
                fps=self.params.subsample.fps,
            )

    def report(self) -> None:
        """Wait for all work, then write the report of what succeeded."""
        self.stop_after("heatmaps")
        self.gather()
        if not self.refs["results"]:
            return
        run = summary.describe_report(self, self.record)
        self.submit("report", tasks.report.report, run=run, run_id=self.record.parent_run_id)
        self.gather_stage("report")

    def ended(self, work: Work, ref: Ref | None, *, is_failure: bool) -> None:
        """Log the task, close its model's MLflow run after the last one, and compare the models once all are evaluated."""
        if ref:
            self.record.log_work(self, work, ref)
        if work.key in self._num_works:
            self._end_work_for(work.key, is_failure=is_failure or ref is None)
        if work.kind in ("evaluate", "controls") and not self._num_open["evaluate"]:
            self._compare()

    def _end_work_for(self, key: RunKey, *, is_failure: bool) -> None:
        self._num_works[key] -= 1
        if is_failure:
            self._failed.add(key)
        if not self._num_works[key]:
            self.record.end_child(key, "FAILED" if key in self._failed else "FINISHED")

    def stage_over(self, stage: str, result: StageResult) -> None:
        """Log a finished stage."""
        if stage == "subsample":
            progress.expect("features", self.num_extractions * sum(ref.counts["frames"] for ref in result.refs))
        progress.finish(stage)
        self.context.store.record_run(str(self.record.parent.id), result.refs)
        self.record.log_stage(self, stage, result)


def _of(features: Mapping[str, Sequence[Future]], streams: Iterable[str]) -> dict[str, Sequence[Future]]:
    """Return the features of some streams."""
    return {stream: features[stream] for stream in streams}


@contextmanager
def _shared(store: Store, max_bytes: float) -> Iterator[list[Ref]]:
    """Hold a lease on a workspace in an object store, and keep its cache within its limit before and after the block.

    Yields:
        a list for the artifacts that stay in the cache whatever its limit, as the summary names their files.
    """
    named: list[Ref] = []
    if not isinstance(store, SharedStore):
        yield named
        return
    with hold_lease(store.remote.address, "run"):
        store.trim(max_bytes)
        yield named  # after an error the next run trims, as the store may be away
        with suppress(UserError):
            store.trim(max_bytes, keep=named)


@contextmanager
def open_run(params: Params, *, until: str | None, refresh: Sequence[str]) -> Iterator[Run]:
    """Lock the workspace and open the run's MLflow and Prefect records; close both on exit, also after an error."""
    unknown = [stage for stage in (*refresh, *filter(None, [until])) if stage not in STAGES]
    if unknown:
        raise UserError(f"{unknown[0]} is not a stage; the stages are {', '.join(STAGES)}")
    workspace = locate_workspace(params.workspace, params.cache)
    context = Context(workspace=workspace, refresh=tuple(refresh))
    with (
        hold_workspace(workspace.folder),
        _shared(context.store, cache_bytes(params)) as named,
        engine_for(params, context.store),
    ):
        context.store.remove_drafts()
        progress.begin()
        record = records.open_record(params, workspace, workspace_id(workspace.folder))
        run = Run(params, context, until, record=record)
        try:
            with suppress(StageReached):
                yield run
            run.gather()
            run.summary.update(summary.summarise(run, record))
            named += [ref for stage in ("train", "report") for ref in run.refs[stage].values()]
            run.raise_failures()
            record.close("FINISHED", run)
        except BaseException as error:
            cancel_work()
            if isinstance(error, FailedWorkError):
                terminal.say_summary(run.summary, workspace.folder)
            run.settle_ended()
            record.close("FAILED" if isinstance(error, Exception) else "KILLED", run)
            raise
