"""How complementary the members of a fusion are: the oracle of either right, and the overlap of their errors."""

# M members, V videos

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from pipeline_lib.evaluate.comparison import Pair, Summary, TrainingRun
from pipeline_lib.evaluate.intervals import accuracy_interval


@dataclass(frozen=True)
class Overlap:
    """Errors of several models on the same test videos (mode)."""

    oracle_accuracy: float
    """Fraction of videos that at least one member gets right: the best that choosing among them could reach."""
    oracle_interval: list[float]
    """Its 95 % CI over groups."""
    all_wrong: float
    """Fraction of videos that every member gets wrong."""
    error_jaccard: float | None
    """Videos that every member gets wrong, as a fraction of those that any gets wrong; None if there are none."""


@dataclass(frozen=True)
class FusionSummary:
    """One fusion over its folds and seeds, compared with its best member."""

    fusion: str
    members: list[str]
    method: str
    weights: list[float]
    """Mean weights of the members; equal for `svm`."""
    notes: list[str]
    """Why the method is not the one asked for, where it is not."""
    best_member: str
    """The member with the highest mean video accuracy (mode) on the test split, which is the hardest to beat."""
    difference: float
    """Video accuracy (mode) of the fusion minus that of the best member, on the same videos."""
    interval: list[float]
    p_value: float
    p_holm: float
    """Holm-adjusted for all pairs of the run."""
    oracle_accuracy: float
    all_wrong: float
    error_jaccard: float | None


def overlap_of_errors(correct_MV: np.ndarray, group_V: np.ndarray) -> Overlap:
    """Compare the members' errors; `correct_MV` says which member is right on which video."""
    any_right_V, all_right_V = np.logical_or.reduce(correct_MV), np.logical_and.reduce(correct_MV)
    num_any_wrong = int((~all_right_V).sum())
    return Overlap(
        oracle_accuracy=float(any_right_V.mean()),
        oracle_interval=accuracy_interval(any_right_V, group_V),
        all_wrong=float((~any_right_V).mean()),
        error_jaccard=float((~any_right_V).sum() / num_any_wrong) if num_any_wrong else None,
    )


def summarise_fusions(runs: Sequence[TrainingRun], summaries: Sequence[Summary], pairs: Sequence[Pair]) -> list[FusionSummary]:
    """Return a summary of each fusion among `runs`, given the summaries and pairs of all models."""
    by_fusion: dict[str, list[TrainingRun]] = {}
    for run in runs:
        if run.fusion:
            by_fusion.setdefault(run.model, []).append(run)
    accuracy_of = {summary.model: summary.mean["video_accuracy"] for summary in summaries}
    return [_summarise(name, own, accuracy_of, pairs) for name, own in by_fusion.items()]


def _summarise(name: str, runs: Sequence[TrainingRun], accuracy_of: dict[str, float], pairs: Sequence[Pair]) -> FusionSummary:
    contents = [run.fusion for run in runs if run.fusion]
    members, fitted = contents[0]["members"], [content["fitted"] for content in contents]
    overlaps = [content["overlap"] for content in contents]
    best = max(members, key=lambda member: accuracy_of[member])
    pair = next(pair for pair in pairs if {pair.first, pair.second} == {name, best})
    sign = 1 if pair.first == name else -1
    jaccards = [overlap["error_jaccard"] for overlap in overlaps if overlap["error_jaccard"] is not None]
    return FusionSummary(
        fusion=name,
        members=members,
        method=contents[0]["method"],
        weights=[mean(weights) for weights in zip(*(fit["weights"] for fit in fitted), strict=True)],
        notes=list(dict.fromkeys(fit["note"] for fit in fitted if fit["note"])),
        best_member=best,
        difference=sign * pair.difference,
        interval=sorted(sign * end for end in pair.interval),
        p_value=pair.p_value,
        p_holm=pair.p_holm,
        oracle_accuracy=mean(overlap["oracle_accuracy"] for overlap in overlaps),
        all_wrong=mean(overlap["all_wrong"] for overlap in overlaps),
        error_jaccard=mean(jaccards) if jaccards else None,
    )
