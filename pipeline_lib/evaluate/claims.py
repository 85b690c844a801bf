"""Test the article's claim that ConvALSTM attends better than ALSTM, by every measure with a better direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline_lib.evaluate.comparison import TrainingRun
from pipeline_lib.evaluate.intervals import LEVEL
from pipeline_lib.evaluate.maps import interval_of_mean, mean_of_totals, subtract_totals
from pipeline_lib.evaluate.measures import MEASURES, MODEL, UNIFORM

FIRST, SECOND = "conv_alstm", "alstm"


@dataclass(frozen=True)
class Claim:
    """The result of testing the claim by one measure."""

    measure: str
    title: str
    first: str
    second: str
    difference: float
    """Margin of the first model over its uniform map minus that of the second; the measure's direction decides its sign."""
    interval: list[float]
    """Interval of the difference over groups; all claims' intervals have a joint coverage of 95 % (Bonferroni)."""
    num_claims: int
    """Number of claims tested together."""
    num_videos: int
    num_groups: int
    holds: bool | None
    """None if the interval contains zero."""


def attention_claims(runs: Sequence[TrainingRun]) -> list[Claim]:
    """Compare the two models' maps on the same videos, folds and seeds; return nothing if they share none.

    Each model's score is taken relative to the uniform map's on the same model. This matters for deletion: the area under the
    curve is also small if the model is unsure to begin with, whatever its map.
    """
    maps = {(run.model, run.fold, run.seed): run.maps for run in runs if run.maps is not None}
    pairs = [(maps[first], maps[SECOND, *first[1:]]) for first in maps if first[0] == FIRST and (SECOND, *first[1:]) in maps]
    directed = [name for name, measure in MEASURES.items() if measure.better] if pairs else []
    totals = {name: _lead(name, pairs) for name in directed}
    known = {name: rows for name, rows in totals.items() if len(rows)}
    return [_claim(name, rows, len(known)) for name, rows in known.items()]


def _lead(measure: str, pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """Return the totals of the first model's lead over the second on each video, over all folds and seeds."""
    differences = [subtract_totals(_gain(measure, first), _gain(measure, second)) for first, second in pairs]
    return pd.concat(differences).groupby(["video", "group"], as_index=False)[["total", "frames"]].sum()


def _claim(name: str, totals: pd.DataFrame, num_claims: int) -> Claim:
    low, high = interval_of_mean(totals, level=1 - (1 - LEVEL) / num_claims)
    measure = MEASURES[name]
    ahead, behind = (low > 0, high < 0) if measure.better == "higher" else (high < 0, low > 0)
    return Claim(
        measure=name,
        title=f"{measure.title}, less the uniform map's",
        first=FIRST,
        second=SECOND,
        difference=mean_of_totals(totals),
        interval=[low, high],
        num_claims=num_claims,
        num_videos=len(totals),
        num_groups=totals["group"].nunique(),
        holds=None if not (ahead or behind) else ahead,
    )


def _gain(measure: str, maps: pd.DataFrame) -> pd.DataFrame:
    rows = maps[maps["measure"] == measure]
    return subtract_totals(rows[rows["map"] == MODEL], rows[rows["map"] == UNIFORM])
