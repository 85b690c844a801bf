"""Which hyper-parameters of a model are searched, and what Optuna's values mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import optuna

from pipeline_lib.params import ModelParams, SweepParams
from pipeline_lib.params.training import UNUSED_HYPERPARAMETERS

NONE_SHARE = 0.2
"""Share of a logarithmic range, below its lowest value, that stands for 0: none is where ever smaller values lead, and as part
of the range it needs no second parameter, which sampler and importance would have to guess together with the first."""

SIGNIFICANT_DIGITS = 3
"""Of the values tried: what a parameter file shows is then exactly what was trained."""


@dataclass(frozen=True)
class Range:
    """A hyper-parameter between two values, on a logarithmic scale or a linear one."""

    name: str
    low: float
    high: float
    log: bool = False
    or_none: bool = False
    """Whether 0 is tried too; takes a logarithmic scale."""

    def suggest(self, trial: optuna.Trial) -> None:
        """Let Optuna choose."""
        trial.suggest_float(self.name, self._lowest, self.high, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether this value could be chosen."""
        return self.low <= value <= self.high or (self.or_none and value == 0)

    def encode(self, value: float) -> float:
        """Return Optuna's value for a hyper-parameter's."""
        return value if value >= self.low else math.sqrt(self._lowest * self.low)

    def decode(self, chosen: float) -> float:
        """Return the hyper-parameter's value for Optuna's."""
        if self.or_none and chosen < self.low:
            return 0.0
        return min(max(float(f"{chosen:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)

    @property
    def _lowest(self) -> float:
        if not self.or_none:
            return self.low
        return self.low / (self.high / self.low) ** (NONE_SHARE / (1 - NONE_SHARE))


@dataclass(frozen=True)
class Choice:
    """A hyper-parameter that is one of some values."""

    name: str
    values: tuple[int | str | None, ...]

    def suggest(self, trial: optuna.Trial) -> None:
        """Let Optuna choose."""
        trial.suggest_categorical(self.name, self.values)

    def contains(self, value: Any) -> bool:
        """Whether this value could be chosen."""
        return value in self.values

    def encode(self, value: Any) -> Any:
        """Return Optuna's value for a hyper-parameter's: the same."""
        return value

    def decode(self, chosen: Any) -> Any:
        """Return the hyper-parameter's value for Optuna's: the same."""
        return chosen


@dataclass(frozen=True)
class Space:
    """All that may differ between the trials of one model, and the parameters that they begin from."""

    base: ModelParams
    dimensions: tuple[Range | Choice, ...]

    @property
    def names(self) -> list[str]:
        """The hyper-parameters that are searched."""
        return [dimension.name for dimension in self.dimensions]

    @property
    def default_point(self) -> dict[str, Any]:
        """Optuna's values for the base; one that lies outside what is searched is not among them."""
        values = {dimension: getattr(self.base, dimension.name) for dimension in self.dimensions}
        return {dim.name: dim.encode(value) for dim, value in values.items() if dim.contains(value)}

    def suggest(self, trial: optuna.Trial) -> ModelParams:
        """Let Optuna choose a value of each; return what to train with."""
        for dimension in self.dimensions:
            dimension.suggest(trial)
        return self.resolve(trial.params)

    def suggest_default(self, trial: optuna.Trial) -> ModelParams:
        """Tell Optuna the base's values, with which the trial was enqueued; return the base, to the bit."""
        for dimension in self.dimensions:
            if dimension.name in self.default_point:
                dimension.suggest(trial)
        return self.base

    def resolve(self, point: dict[str, Any]) -> ModelParams:
        """Return the parameters that Optuna's values stand for."""
        changed = {dimension.name: dimension.decode(point[dimension.name]) for dimension in self.dimensions}
        return ModelParams.model_validate(self.base.model_dump() | changed)

    def searched(self, params: ModelParams) -> dict[str, Any]:
        """Return the values of the hyper-parameters that are searched."""
        return {name: getattr(params, name) for name in self.names}


def make_space(params: SweepParams, base: ModelParams) -> Space:
    """Return what is searched for a model: all that `sweep` names and the model has."""
    dimensions = (
        Range("learning_rate", *params.learning_rate, log=params.learning_rate[0] > 0),
        Range("dropout", *params.dropout),
        _penalty("attention_penalty", *params.attention_penalty),
        _penalty("weight_decay", *params.weight_decay),
        Choice("units", params.units or _around(base.units)),
        Choice("layers", params.layers),
        Choice("scorer", params.scorer),
        Choice("head_channels", params.head_channels),
    )
    return Space(base, tuple(dimension for dimension in dimensions if dimension.name not in UNUSED_HYPERPARAMETERS[base.model]))


def _around(units: int | None) -> tuple[int | None, ...]:
    """Return half, once and twice as many units; of a model that has none, none."""
    return tuple(dict.fromkeys((max(units // 2, 1), units, 2 * units))) if units else (units,)


def _penalty(name: str, low: float, high: float) -> Range:
    """Return a range over orders of magnitude, and none; a range that begins at 0 is linear and has it already."""
    return Range(name, low, high, log=low > 0, or_none=low > 0)
