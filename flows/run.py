"""One run of the pipeline: submits each stage's tasks, gathers what they return, and tells MLflow, Prefect and the terminal.

Stages are submitted at once and Prefect starts each task when what it needs is there, so that shards flow from one stage into
the next. Only `fetch` is waited for, since it says how many shards there are, and `sweep`, since it says what to train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.futures import PrefectFuture

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
from flows import records, summary
from flows.cells import Cell, Overrides, plan_cells
from flows.execution import Execution, Future, StageReached, StageResult
from pipeline_lib.errors import UserError
from pipeline_lib.fetch.collection import videos_root
from pipeline_lib.params import STAGES, Params
from pipeline_lib.tables import read_shards
from pipeline_lib.workspace import hold_workspace, workspace_id
from tasks import progress
from tasks.placing import end_workers
from tasks.stage import Context, Ref, cancel_waiting_work

BySplit = Mapping[int, Future]
FeaturesBySplit = Mapping[int, Sequence[Future]]


@dataclass
class Run(Execution):
    """A run under way. Its methods carry the names of the stages."""

    record: records.Record = field(kw_only=True)
    cells: list[Cell] = field(default_factory=list)
    """What is trained and tested; `train` and the beginning of `evaluate` are in their order."""
    found: Overrides = field(default_factory=dict)
    """What the sweep found."""
    summary: dict[str, Any] = field(default_factory=dict)
    shard_names: list[str] = field(default_factory=list)
    quarantine: PrefectFuture[Any] | None = None
    """Fails if subsampling lost more videos than allowed."""

    def fetch(self) -> Ref:
        """Fetch the collection and wait for it."""
        self.submit("fetch", tasks.fetch.fetch, params=self.params.fetch)
        return self.gather_stage("fetch").refs[0]

    def subsample(self, collection: Ref) -> list[Future]:
        """Subsample every shard."""
        directory = collection.directory(self.context)
        shards = read_shards(directory, self.params.subsample.shard_videos)
        progress.expect("subsample", sum(len(videos) for videos in shards.values()))
        self.shard_names = list(shards)
        root = videos_root(self.params.fetch, directory)
        for shard, videos in shards.items():
            self.submit(
                "subsample", tasks.subsample.subsample, shard=shard, videos=videos, root=root, params=self.params.subsample
            )
        shard_futures: list[Any] = self.futures["subsample"]
        self.quarantine = tasks.subsample.quarantine.submit(
            context=self.context, shards=shard_futures, params=self.params.subsample
        )
        return shard_futures

    def chunk(self, collection: Ref, shards: Sequence[Future]) -> BySplit:
        """Cut clips, and deal them to parts for each split, once it is sure that not too many videos are lost."""
        assert self.quarantine is not None
        return {
            split: self.submit(
                "chunk",
                tasks.chunk.chunk,
                wait_for=[self.quarantine],
                collection=collection,
                shards=shards,
                params=self.params.chunk.of_split(split),
            )
            for split in self.params.chunk.splits
        }

    def finetune(self, clips: BySplit, shards: Sequence[Future]) -> BySplit:
        """Tune the backbone on each split's training part, if the parameters ask for it."""
        if not self.params.finetune.enabled:
            self.stop_after("finetune")
            return {}
        progress.expect("finetune", self.params.finetune.epochs * len(clips))
        return {
            split: self.submit(
                "finetune",
                tasks.finetune.finetune,
                clips=table,
                shards=shards,
                params=self.params.finetune,
                features=self.params.features,
            )
            for split, table in clips.items()
        }

    def features(self, shards: Sequence[Future], backbones: BySplit) -> FeaturesBySplit:
        """Extract features shard by shard, each as soon as its frames are there: once for all splits, or for each its own."""
        if backbones:
            return {split: self._extract(shards, backbone) for split, backbone in backbones.items()}
        return dict.fromkeys(self.params.chunk.splits, self._extract(shards, None))

    def _extract(self, shards: Sequence[Future], backbone: Future | None) -> list[Future]:
        return [
            self.submit(
                "features",
                tasks.features.features,
                name=name,
                shard=shard,
                backbone=backbone,
                params=self.params.features,
                chunk=self.params.chunk,
                fps=self.params.subsample.fps,
            )
            for name, shard in zip(self.shard_names, shards, strict=True)
        ]

    def sweep(self, clips: BySplit, features: FeaturesBySplit) -> Overrides:
        """Search hyper-parameters on the first split, if the parameters ask for it, and wait for what is found."""
        if not self.params.sweep.enabled:
            self.stop_after("sweep")
            return {}
        split, models = self.params.chunk.splits[0], self.params.sweep.models
        self.stop_after("features")
        progress.expect("sweep", self.params.sweep.trials * len(models))
        for model in models:
            self.submit(
                "sweep",
                tasks.sweep.sweep,
                model=model,
                clips=clips[split],
                features=features[split],
                params=self.params.sweep,
                base=self.params.train.of(model),
                mlflow_run_id=self.record.open_sweep(model),
            )
        self.gather()
        refs = self.results["sweep"].refs
        self.stop_after("sweep")
        self.found = {
            model: tasks.sweep.read_best(ref.directory(self.context)) for model, ref in zip(models, refs, strict=True)
        }
        return self.found

    def train(self, clips: BySplit, features: FeaturesBySplit, found: Overrides) -> list[Future]:
        """Train each cell under an MLflow run of its own."""
        self.stop_after("sweep")
        self.cells = plan_cells(self.params, found)
        alike = len(self.params.chunk.splits) * len(self.params.train.all_seeds)
        self.context = self.context.model_copy(update={"alike": alike, "workers": self.params.train.workers})
        progress.expect("train", sum(cell.params.epochs for cell in self.cells))
        return [
            self.submit(
                "train",
                tasks.train.train,
                cell=cell.label,
                clips=clips[cell.split],
                features=features[cell.split],
                params=cell.params,
                mlflow_run_id=self.record.open_child(cell, self.params),
            )
            for cell in self.cells
        ]

    def evaluate(
        self, models: Sequence[Future], clips: BySplit, features: FeaturesBySplit, shards: Sequence[Future], collection: Ref
    ) -> Sequence[Future]:
        """Score each cell on its test part, find what needs no model to be scored, and compare them all."""
        evaluated = [
            self.submit(
                "evaluate",
                tasks.evaluate.evaluate,
                cell=cell.label,
                trained=trained,
                clips=clips[cell.split],
                features=features[cell.split],
                collection=collection,
                params=self.params.evaluate,
                fps=self.params.subsample.fps,
            )
            for cell, trained in zip(self.cells, models, strict=True)
        ]
        controls = [
            self.submit(
                "evaluate",
                tasks.evaluate.controls,
                split=split,
                clips=table,
                features=features[split],
                shards=shards,
                params=self.params.evaluate,
                fps=self.params.subsample.fps,
            )
            for split, table in clips.items()
        ]
        self.submit(
            "evaluate",
            tasks.evaluate.results,
            cells=[cell.key for cell in self.cells],
            evaluated=evaluated,
            splits=list(clips),
            controls=controls,
            params=self.params.evaluate,
        )
        return evaluated

    @property
    def shown(self) -> list[int]:
        """Indices of the cells that are drawn and shown: the first one of each name."""
        names = [cell.name for cell in self.cells]
        return [names.index(name) for name in dict.fromkeys(names)]

    @property
    def drawn(self) -> list[int]:
        """Those among them that have attention to draw."""
        return [index for index in self.shown if self.cells[index].params.attends]

    def heatmaps(self, scores: Sequence[Future], shards: Sequence[Future]) -> None:
        """Draw the attention of each model that has any."""
        progress.expect("heatmaps", (self.params.heatmaps.successes + self.params.heatmaps.failures) * len(self.drawn))
        for index in self.drawn:
            self.submit(
                "heatmaps",
                tasks.heatmaps.heatmaps,
                cell=self.cells[index].label,
                evaluated=scores[index],
                shards=shards,
                params=self.params.heatmaps,
                fps=self.params.subsample.fps,
            )

    def report(self) -> None:
        """Write the page, once everything it shows is there."""
        self.stop_after("heatmaps")
        self.gather()
        run = summary.describe_report(self)
        self.submit("report", tasks.report.report, run=run, run_id=self.record.parent_run_id)
        self.gather_stage("report")

    def gathered(self, stage: str, result: StageResult) -> None:
        """Record a stage that is over; subsampling is not before it is sure that not too many videos are lost."""
        if stage == "subsample" and self.quarantine:
            self.quarantine.result()
            progress.expect("features", sum(ref.counts["frames"] for ref in result.refs))
        progress.finish(stage)
        self.context.store.record_run(self.record.parent_run_id, result.refs)
        self.record.log_stage(self, stage, result)


@contextmanager
def open_run(params: Params, *, until: str | None, refresh: Sequence[str]) -> Iterator[Run]:
    """Hold the workspace, open the run's records, and see to it that both are closed, whatever happens."""
    unknown = [stage for stage in (*refresh, *filter(None, [until])) if stage not in STAGES]
    if unknown:
        raise UserError(f"{unknown[0]} is not a stage; the stages are {', '.join(STAGES)}")
    workspace = Path(params.workspace).expanduser().absolute()
    context = Context(workspace=workspace, refresh=tuple(refresh))
    with hold_workspace(workspace):
        context.store.remove_drafts()
        progress.begin()
        record = records.open_record(params, workspace, workspace_id(workspace))
        run = Run(params, context, until, record=record)
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
        finally:
            end_workers()
