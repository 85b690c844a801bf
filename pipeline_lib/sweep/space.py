"""Which hyper-parameters of a model are searched, and what Optuna's values mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from pipeline_lib.params import ModelParams, SweepParams
from pipeline_lib.params.models import UNUSED_HYPERPARAMETERS

NONE_SHARE = 0.2
"""Share of a penalty's logarithmic range, below its lowest value, that stands for 0. Ever smaller penalties lead to none, and
as part of the range it needs no second parameter, which sampler and importance would have to model with the first."""

SIGNIFICANT_DIGITS = 3
"""Of the values tried: what a parameter file shows is then exactly what was trained."""


@dataclass(frozen=True)
class Space:
    """All that may differ between the trials of one model, and the parameters that they begin from."""

    base: ModelParams
    distributions: Mapping[str, BaseDistribution]
    """What Optuna draws each hyper-parameter from."""
    lowest: Mapping[str, float] = field(default_factory=dict)
    """The lowest values of penalties; what Optuna draws below stands for 0."""

    @property
    def default_point(self) -> dict[str, Any]:
        """Optuna's values for the base; one that lies outside what is searched is not among them."""
        values = {name: self._encode(name, getattr(self.base, name)) for name in self.distributions}
        return {name: value for name, value in values.items() if self._contains(name, value)}

    def resolve(self, point: Mapping[str, Any]) -> ModelParams:
        """Return the parameters that Optuna's values stand for."""
        changed = {name: self._decode(name, point[name]) for name in self.distributions}
        return ModelParams.model_validate(self.base.model_dump() | changed)

    def searched(self, params: ModelParams) -> dict[str, Any]:
        """Return the values of the hyper-parameters that are searched."""
        return {name: getattr(params, name) for name in self.distributions}

    def _contains(self, name: str, value: Any) -> bool:
        match self.distributions[name]:
            case FloatDistribution(low=low, high=high):
                return bool(low <= value <= high)
            case CategoricalDistribution(choices=choices):
                return value in choices
        raise AssertionError(name)

    def _encode(self, name: str, value: Any) -> Any:
        distribution = self.distributions[name]
        if name in self.lowest and value == 0 and isinstance(distribution, FloatDistribution):
            return math.sqrt(distribution.low * self.lowest[name])
        return value

    def _decode(self, name: str, drawn: Any) -> Any:
        distribution = self.distributions[name]
        if not isinstance(distribution, FloatDistribution):
            return drawn
        low = self.lowest.get(name, distribution.low)
        return 0.0 if drawn < low else min(max(float(f"{drawn:.{SIGNIFICANT_DIGITS}g}"), low), distribution.high)


def make_space(params: SweepParams, base: ModelParams) -> Space:
    """Return what is searched for a model: all that `sweep` names and the model has."""
    distributions = {
        "learning_rate": FloatDistribution(*params.learning_rate, log=True),
        "dropout": FloatDistribution(*params.dropout),
        "attention_penalty": _penalty(*params.attention_penalty),
        "weight_decay": _penalty(*params.weight_decay),
        "units": CategoricalDistribution(params.units or _around(base.units)),
        "layers": CategoricalDistribution(params.layers),
        "scorer": CategoricalDistribution(params.scorer),
        "head_channels": CategoricalDistribution(params.head_channels),
    }
    penalties = {"attention_penalty": params.attention_penalty, "weight_decay": params.weight_decay}
    return Space(
        base,
        {name: distribution for name, distribution in distributions.items() if name not in UNUSED_HYPERPARAMETERS[base.model]},
        {name: low for name, (low, _) in penalties.items() if low > 0},
    )


def _around(units: int | None) -> tuple[int | None, ...]:
    """Return half, once and twice as many units; of a model that has none, none."""
    return tuple(dict.fromkeys((max(units // 2, 1), units, 2 * units))) if units else (units,)


def _penalty(low: float, high: float) -> FloatDistribution:
    """Return a range over orders of magnitude, and none; a range that begins at 0 is linear and has it already."""
    if low == 0:
        return FloatDistribution(low, high)
    return FloatDistribution(low / (high / low) ** (NONE_SHARE / (1 - NONE_SHARE)), high, log=True)
