"""What the paired tests say about streams and about attention, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pipeline_lib.params import Params
from pipeline_lib.params.models import split_model

MEAN = "mean_pool"


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


def findings(results: Mapping[str, Any], params: Params, attending: Collection[str]) -> list[str]:
    """Return a sentence for every two streams that one model reads in turn, and for attention against the mean of all cells.

    Args:
        results: `results.json`, with pairs of models.
        params: the run's parameters, which say what each model reads.
        attending: names of the models with attention.
    """
    pairs = {(pair["first"], pair["second"]): pair for pair in results["pairs"]}
    return [*_on_streams(pairs, params), *_on_attention(pairs, params, attending)]


def _on_streams(pairs: Mapping[tuple[str, str], Any], params: Params) -> Iterator[str]:
    """Compare every two streams, the later one of the parameters with the earlier one."""
    readers = {(split_model(name)[0], params.streams_of(name)): name for name in params.train.models}
    for earlier, later in combinations(params.features.all_streams, 2):
        names = [
            (model, readers[model, (later,)], readers[model, (earlier,)])
            for model, streams in readers
            if streams == (later,) and (model, (earlier,)) in readers
        ]
        differences = [_difference(pairs, *pair) for pair in names]
        yield from _sentence(f"The stream {later}", f"the stream {earlier}", differences)


def _on_attention(pairs: Mapping[tuple[str, str], Any], params: Params, attending: Collection[str]) -> Iterator[str]:
    """Compare each model with attention with the mean pool that reads the same streams."""
    means = {params.streams_of(name): name for name in params.train.models if split_model(name)[0] == MEAN}
    names = [(name, means.get(params.streams_of(name))) for name in params.train.models if name in attending]
    differences = [_difference(pairs, name, name, mean) for name, mean in names if mean]
    yield from _sentence("Attention", "the mean over cells", differences)


def _difference(pairs: Mapping[tuple[str, str], Any], title: str, first: str, second: str) -> Difference | None:
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
