"""What a run trains and tests: each model on each split with each seed, and what a sweep found beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from pipeline_lib.params import ModelName, ModelParams, Params, TrainParams

CellKey = tuple[str, int, int]
"""A cell's name, split and seed."""
Overrides = Mapping[ModelName, Mapping[str, Any]]
"""The best hyper-parameters that a sweep found, by model."""


@dataclass(frozen=True)
class Cell:
    """One model, trained with one seed on one split."""

    name: str
    """The model's name in results: `alstm`, or `alstm_tuned` with a sweep's best hyper-parameters."""
    split: int
    seed: int
    params: ModelParams
    label: str
    """The name, and split and seed where the run has several."""

    @property
    def key(self) -> CellKey:
        """What tells it from the run's other cells."""
        return self.name, self.split, self.seed


def plan_cells(params: Params, found: Overrides) -> list[Cell]:
    """Return the run's cells; the first one of each name is the one that is drawn and shown."""
    return [
        Cell(name, split, seed, train.of(model, seed), _label(name, split, seed, params))
        for model, name, train in _variants(params.train, found)
        for split in params.chunk.splits
        for seed in params.train.all_seeds
    ]


def first_of_each_name(cells: Iterable[Cell]) -> list[Cell]:
    """Return the first cell of each name: the one that is drawn and shown."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.name, cell)
    return list(first.values())


def _variants(train: TrainParams, found: Overrides) -> Iterator[tuple[ModelName, str, TrainParams]]:
    for model in train.models:
        yield model, model, train
        if model in found:
            yield model, f"{model}_tuned", with_overrides(train, {model: found[model]})


def with_overrides(train: TrainParams, found: Overrides) -> TrainParams:
    """Return the parameters with a sweep's findings over them."""
    overrides = {**train.overrides, **{model: {**train.overrides.get(model, {}), **values} for model, values in found.items()}}
    return train.model_copy(update={"overrides": overrides})


def _label(name: str, split: int, seed: int, params: Params) -> str:
    of_split = f" split {split}" if len(params.chunk.splits) > 1 else ""
    of_seed = f" seed {seed}" if len(params.train.all_seeds) > 1 else ""
    return f"{name}{of_split}{of_seed}"


def best_cell(cells: Sequence[Cell], counts: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the best model's cell: the model by its means over folds and seeds, then the first fold's best seed.

    Every fold has a validation split of its own, and one may be easier than another. So folds are averaged, which is fair to
    models that were trained on all of them, but never compared. Better is higher validation accuracy; at equal accuracy a
    model that shows where it looked, then smaller calibrated validation loss.

    Args:
        cells: all cells of a run.
        counts: what training each of them counted.
    """

    def score(indices: list[int]) -> tuple[float, bool, float]:
        accuracy = mean(float(counts[index]["best_val_clip_accuracy"]) for index in indices)
        loss = mean(float(counts[index]["best_val_calibrated_loss"]) for index in indices)
        return accuracy, cells[indices[0]].params.attends, -loss

    by_name: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        by_name.setdefault(cell.name, []).append(index)
    best: list[int] = max(by_name.values(), key=score)
    first_fold = [index for index in best if cells[index].split == cells[best[0]].split]
    return max(first_fold, key=lambda index: score([index]))
