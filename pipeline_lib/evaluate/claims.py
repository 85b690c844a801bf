"""Test claims that one model attends better than another, by every measure with a better direction.

The article claims it of ConvALSTM over ALSTM, Li et al. 2018 (VideoLSTM) of attention that motion guides over plain attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline_lib.evaluate.comparison import TrainingRun
from pipeline_lib.evaluate.intervals import LEVEL
from pipeline_lib.evaluate.measures import MEASURES, MODEL, UNIFORM
from pipeline_lib.evaluate.totals import interval_of_mean, mean_of_totals, subtract_totals

CLAIMS = (("conv_alstm", "alstm"), ("motion_conv_alstm", "conv_alstm"), ("motion_alstm", "alstm"))
"""The model that is claimed to attend better, and the other one."""


@dataclass(frozen=True)
class Claim:
    """The result of testing a claim by one measure."""

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
    """Compare the two models' maps on the same videos, folds and seeds; claims whose models share none are left out.

    Each model's score is taken relative to the uniform map's on the same model. This matters for deletion: the area under the
    curve is also small if the model is unsure to begin with, whatever its map.
    """
    directed = [name for name, measure in MEASURES.items() if measure.better]
    leads: dict[tuple[str, str, str], pd.DataFrame] = {}
    for first, second in CLAIMS:
        if pairs := _pairs(runs, first, second):
            leads |= {(first, second, name): _lead(name, pairs) for name in directed}
    known = {key: rows for key, rows in leads.items() if len(rows)}
    return [_claim(*key, rows, len(known)) for key, rows in known.items()]


def _pairs(runs: Sequence[TrainingRun], first: str, second: str) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the maps of two models for each fold and seed that both have."""
    maps = {(run.model, run.fold, run.seed): run.maps for run in runs if run.maps is not None}
    return [(maps[key], maps[second, *key[1:]]) for key in maps if key[0] == first and (second, *key[1:]) in maps]


def _lead(measure: str, pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """Return the totals of the first model's lead over the second on each video, over all folds and seeds."""
    differences = [subtract_totals(_gain(measure, first), _gain(measure, second)) for first, second in pairs]
    return pd.concat(differences).groupby(["video", "group"], as_index=False)[["total", "frames"]].sum()


def _claim(first: str, second: str, name: str, totals: pd.DataFrame, num_claims: int) -> Claim:
    low, high = interval_of_mean(totals, level=1 - (1 - LEVEL) / num_claims)
    measure = MEASURES[name]
    ahead, behind = (low > 0, high < 0) if measure.better == "higher" else (high < 0, low > 0)
    return Claim(
        measure=name,
        title=f"{measure.title}, less the uniform map's",
        first=first,
        second=second,
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
