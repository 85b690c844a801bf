"""Does ConvALSTM attend better than ALSTM, as the article claims? Answered for every measure that has a better direction.

The measures are several tests of one claim: their intervals are simultaneous (Bonferroni), so that all of them hold together
with a confidence of 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline_lib.evaluate.bootstrap import CONFIDENCE
from pipeline_lib.evaluate.comparison import Cell
from pipeline_lib.evaluate.maps import interval_of_mean, less, mean_of_totals
from pipeline_lib.evaluate.measures import MEASURES, MODEL, UNIFORM
from pipeline_lib.params import EvaluateParams

FIRST, SECOND = "conv_alstm", "alstm"


@dataclass(frozen=True)
class Claim:
    """The article's claim, by one measure."""

    measure: str
    title: str
    first: str
    second: str
    difference: float
    """How far the first is ahead of its own uniform map, less how far the second is; negative may be the better."""
    interval: list[float]
    """Bootstrap interval of the difference, over groups of test videos, at the confidence below."""
    confidence: float
    """1 - 0.05 / the number of claims."""
    num_videos: int
    holds: bool | None
    """None: the interval holds zero."""


def attention_claims(cells: Sequence[Cell], params: EvaluateParams) -> list[Claim]:
    """Compare the two models' maps on the same videos, splits and seeds; nothing where one of the two was not trained.

    Each model is first compared with the uniform map (a random order) on itself. Against boxes that changes nothing; but the
    area under a deletion curve is also small where a model is unsure from the start, which is no merit of its map.
    """
    maps = {(cell.model, cell.split, cell.seed): cell.maps for cell in cells if cell.maps is not None}
    pairs = [(maps[first], maps[SECOND, *first[1:]]) for first in maps if first[0] == FIRST and (SECOND, *first[1:]) in maps]
    totals = {measure: _totals(measure, pairs) for measure in MEASURES if pairs and MEASURES[measure].better}
    known = {measure: table for measure, table in totals.items() if len(table)}
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(known))
    return [_claim(measure, table, params, confidence) for measure, table in known.items()]


def _totals(measure: str, pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """Return each video's difference between the two models' gains, summed over splits and seeds."""
    apart = [less(_gain(measure, first), _gain(measure, second)) for first, second in pairs]
    return pd.concat(apart).groupby(["video", "group"], as_index=False)[["total", "frames"]].sum()


def _claim(measure: str, totals: pd.DataFrame, params: EvaluateParams, confidence: float) -> Claim:
    better = MEASURES[measure].better
    low, high = interval_of_mean(totals, params, confidence=confidence)
    ahead, behind = (low > 0, high < 0) if better == "higher" else (high < 0, low > 0)
    holds = None if not (ahead or behind) else ahead
    title = f"{MEASURES[measure].title}, less the uniform map's"
    return Claim(measure, title, FIRST, SECOND, mean_of_totals(totals), [low, high], confidence, len(totals), holds)


def _gain(measure: str, maps: pd.DataFrame) -> pd.DataFrame:
    rows = maps[maps["measure"] == measure]
    return less(rows[rows["map"] == MODEL], rows[rows["map"] == UNIFORM])
