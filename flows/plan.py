"""What a run trains and tests: each model on each fold with each seed, with default and swept hyper-parameters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from statistics import mean
from typing import Any

from pipeline_lib.artifacts import Store
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.shipping import Shipper
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.engine import open_engine
from pipeline_lib.compute.gpus import count_gpus
from pipeline_lib.compute.planning import SideBySide
from pipeline_lib.params import FusionParams, ModelOnStream, ModelParams, Params, TrainParams, split_model
from tasks.evaluate import RunKey

Overrides = Mapping[ModelOnStream, Mapping[str, Any]]
"""The best hyper-parameters that a sweep found, by model."""


@dataclass(frozen=True)
class TrainingRun:
    """One model, trained with one seed on one fold."""

    name: str
    """The model's name in results: `alstm`, or `alstm_tuned` with a sweep's best hyper-parameters."""
    fold: int
    seed: int
    params: ModelParams
    streams: tuple[str, ...]
    """The streams that it reads."""
    label: str
    """The name, and fold and seed where the run has several."""

    @property
    def key(self) -> RunKey:
        """Unique among the training runs of a run."""
        return self.name, self.fold, self.seed

    @property
    def attends(self) -> bool:
        """Whether the model has attention to draw."""
        return self.params.attends


@dataclass(frozen=True)
class FusionRun:
    """One fusion of models that were trained with one seed on one fold."""

    name: str
    fold: int
    seed: int
    params: FusionParams
    label: str
    """The name, and fold and seed where the run has several."""
    attends: bool
    """Whether a member has attention, so that the fusion has some to draw."""

    @property
    def key(self) -> RunKey:
        """Unique among the training runs and fusions of a run."""
        return self.name, self.fold, self.seed

    @property
    def members(self) -> list[RunKey]:
        """Keys of the training runs that are fused."""
        return [(member, self.fold, self.seed) for member in self.params.members]


TestedRun = TrainingRun | FusionRun


def plan_training_runs(params: Params, found: Overrides) -> list[TrainingRun]:
    """Return all training runs of a run; only the first of each name is drawn and shown."""
    return [
        TrainingRun(name, fold, seed, train.of(model, seed), params.streams_of(model), _label(name, fold, seed, params))
        for model, name, train in _variants(params.train, found)
        for fold in params.chunk.folds
        for seed in params.train.all_seeds
    ]


def plan_fusions(params: Params) -> list[FusionRun]:
    """Return all fusions of a run: each one for every fold and seed."""
    return [
        FusionRun(name, fold, seed, fusion, _label(name, fold, seed, params), attends)
        for name, fusion in params.evaluate.fusions.items()
        for attends in [any(params.train.of(member).attends for member in fusion.members)]
        for fold in params.chunk.folds
        for seed in params.train.all_seeds
    ]


def first_of_each_name(runs: Iterable[TestedRun]) -> list[TestedRun]:
    """Return the first run of each name: the one that is drawn and shown."""
    first: dict[str, TestedRun] = {}
    for run in runs:
        first.setdefault(run.name, run)
    return list(first.values())


def _variants(train: TrainParams, found: Overrides) -> Iterator[tuple[ModelOnStream, str, TrainParams]]:
    for model in train.models:
        yield model, model, train
        if model in found:
            yield (
                model,
                "@".join((f"{split_model(model)[0]}_tuned", *model.split("@")[1:])),
                with_overrides(train, {model: found[model]}),
            )


def with_overrides(train: TrainParams, found: Overrides) -> TrainParams:
    """Return the parameters, overridden by the best hyper-parameters of a sweep."""
    overrides = {**train.overrides, **{model: {**train.overrides.get(model, {}), **values} for model, values in found.items()}}
    return train.model_copy(update={"overrides": overrides})


def _label(name: str, fold: int, seed: int, params: Params) -> str:
    of_fold = f" fold {fold}" if len(params.chunk.folds) > 1 else ""
    of_seed = f" seed {seed}" if len(params.train.all_seeds) > 1 else ""
    return f"{name}{of_fold}{of_seed}"


def best_training_run(training_runs: Sequence[TrainingRun], counts: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the best training run: the best seed on the first fold of the model with the best mean.

    Each fold has its own validation split, and one may be easier than another. So a model is scored by its mean over folds,
    and folds are never compared. The order is: higher validation accuracy, then attention, then lower calibrated validation
    loss.

    Args:
        training_runs: all training runs of a run.
        counts: the counts of each train artifact, in the same order.
    """

    def score(indices: list[int]) -> tuple[float, bool, float]:
        accuracy = mean(float(counts[index]["best_val_clip_accuracy"]) for index in indices)
        loss = mean(float(counts[index]["best_val_calibrated_loss"]) for index in indices)
        return accuracy, training_runs[indices[0]].params.attends, -loss

    by_name: dict[str, list[int]] = {}
    for index, training in enumerate(training_runs):
        by_name.setdefault(training.name, []).append(index)
    best: list[int] = max(by_name.values(), key=score)
    first_fold = [index for index in best if training_runs[index].fold == training_runs[best[0]].fold]
    return max(first_fold, key=lambda index: score([index]))


def side_by_side(params: Params) -> SideBySide:
    """Return how many training runs of one model may run concurrently: `train.workers`, or one a fold and seed."""
    if params.train.workers:
        return SideBySide(params.train.workers, is_limit=True)
    return SideBySide(len(params.chunk.folds) * len(params.train.all_seeds), is_limit=False)


def cache_bytes(params: Params) -> float:
    """Return the limit of a cache's size."""
    return inf if params.cache_gb is None else params.cache_gb * 1e9


def engine_for(params: Params, store: Store) -> AbstractContextManager[None]:
    """Open the engine of a run: this process, or Ray if the run uses several GPUs or processes."""
    address = params.run.engine or ("auto" if "RAY_ADDRESS" in os.environ else None)
    num_gpus = count_gpus()
    shipper = Shipper(store, cache_bytes(params)) if isinstance(store, SharedStore) else None
    is_local_ray = _has_several_places(params, num_gpus)
    return open_engine(address, is_local_ray=is_local_ray, num_gpus=num_gpus, shipper=shipper)


def _has_several_places(params: Params, num_gpus: int) -> bool:
    """Return whether the run uses several GPUs, or several processes on the CPU."""
    if num_gpus and params.train.device != "cpu":
        return num_gpus > 1
    number, is_limit = side_by_side(params)
    searches = params.sweep.enabled and params.sweep.workers != 1
    return (number if is_limit else min(number, num_cores())) > 1 or (searches and num_cores() > 1)
