"""What the paired tests say about streams and about attention, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pipeline_lib.params.models import SECOND_INPUT, default_stream, split_model

MEAN = "mean_pool"

Pairs = Mapping[tuple[str, str], Any]
"""The paired test of every two models, by their names."""
Inputs = Mapping[str, tuple[str, tuple[str, ...]]]
"""What kind of model each name stands for, and the streams that it reads."""


@dataclass(frozen=True)
class Difference:
    """How much more accurate a model is than another one on the same videos."""

    model: str
    """How a sentence calls the pair."""
    value: float
    interval: tuple[float, float]
    num_groups: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero, else 0."""
        low, high = self.interval
        return (low > 0) - (high < 0)


def findings(
    results: Mapping[str, Any], models: Sequence[str], streams: Sequence[str], attending: Collection[str]
) -> list[str]:
    """Return a sentence for every two streams that one model reads in turn, and for models with attention.

    Args:
        results: `results.json`, with pairs of models.
        models: the names in `train.models`.
        streams: the names of all streams.
        attending: names of the models with attention.
    """
    pairs = {(pair["first"], pair["second"]): pair for pair in results["pairs"]}
    inputs = {name: _inputs(name, default_stream(streams)) for name in models}
    return [*_on_streams(pairs, inputs, streams), *_on_attention(pairs, inputs, attending)]


def _inputs(name: str, default: str) -> tuple[str, tuple[str, ...]]:
    """Return the model and the streams that it reads; none if it chooses two by itself."""
    model, streams = split_model(name)
    return model, streams or (() if model in SECOND_INPUT else (default,))


def _on_streams(pairs: Pairs, inputs: Inputs, streams: Sequence[str]) -> Iterator[str]:
    """Compare every two streams, the later one of the parameters with the earlier one."""
    readers = {reader: name for name, reader in inputs.items()}
    for earlier, later in combinations(streams, 2):
        both = [model for model, read in inputs.values() if read == (later,) and (model, (earlier,)) in readers]
        differences = [_difference(pairs, model, readers[model, (later,)], readers[model, (earlier,)]) for model in both]
        yield from _sentence(f"The stream {later}", f"the stream {earlier}", differences)


def _on_attention(pairs: Pairs, inputs: Inputs, attending: Collection[str]) -> Iterator[str]:
    """Compare each model with attention with the mean pool that reads the same streams."""
    means = {streams: name for name, (model, streams) in inputs.items() if model == MEAN}
    names = [(name, means[streams]) for name, (_, streams) in inputs.items() if name in attending and streams in means]
    yield from _sentence(
        "A model with attention", "the mean over cells", [_difference(pairs, name, name, mean) for name, mean in names]
    )


def _difference(pairs: Pairs, title: str, first: str, second: str) -> Difference | None:
    """Return the difference of two models, or None if they were not tested together."""
    is_turned = (first, second) not in pairs
    pair = pairs.get((second, first) if is_turned else (first, second))
    if pair is None:
        return None
    low, high = pair["interval"]
    value, interval = (-pair["difference"], (-high, -low)) if is_turned else (pair["difference"], (low, high))
    return Difference(title.replace("_", " "), value, interval, pair["num_groups"])


def _sentence(first: str, second: str, differences: Sequence[Difference | None]) -> Iterator[str]:
    """Yield what the differences say together, if there are any."""
    if known := [difference for difference in differences if difference is not None]:
        listed = ", ".join(f"{row.model} {_points(row.value)} [{', '.join(map(_points, row.interval))}]" for row in known)
        groups = max(row.num_groups for row in known)
        yield (
            f"{first} {_verdict([row.sign for row in known])} {second}: {listed} "
            f"(difference in video accuracy in percentage points, 95 % CI over {groups} groups)."
        )


def _verdict(signs: Sequence[int]) -> str:
    if len(set(signs)) == 1:
        return {1: "is more accurate than", -1: "is less accurate than", 0: "is not clearly better or worse than"}[signs[0]]
    num_better, num_worse = signs.count(1), signs.count(-1)
    clear = [f"{word} in {count}" for word, count in (("more accurate", num_better), ("less accurate", num_worse)) if count]
    return f"is {' and '.join(clear)} of {len(signs)} comparisons with"


def _points(difference: float) -> str:
    number = round(100 * difference)
    return f"{number:+d}".replace("-", "\u2212") if number else "0"
