"""Write a run's results: models, controls and comparisons, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.evaluate.claims import attention_claims
from pipeline_lib.evaluate.comparison import COLUMNS, Pair, Summary, TrainingRun, compare, summarise
from pipeline_lib.evaluate.complementarity import summarise_fusions
from pipeline_lib.evaluate.fusion_evaluation import read_fusion
from pipeline_lib.params import EvaluateParams

LINEAR = {"logistic_regression": layout.VIDEOS, "linear_svm": layout.SVM_VIDEOS}
"""Names of the linear baselines among the models, with the files of their predictions."""


@dataclass(frozen=True)
class Controls:
    """The controls of one fold."""

    fold: int
    scores: Mapping[str, Any]
    """The result of `evaluate_controls`."""
    linear: Sequence[TrainingRun]
    """The linear baselines, for comparison with the models."""


def read_training_run(directory: Path, model: str, fold: int, seed: int) -> TrainingRun:
    """Read the files that `evaluate_model` or `evaluate_fusion` wrote."""
    metrics = json.loads((directory / layout.METRICS).read_text(encoding="utf-8"))
    maps = directory / layout.MAPS_TABLE
    return TrainingRun(
        model,
        fold,
        seed,
        metrics,
        videos=pd.read_parquet(directory / layout.VIDEOS),
        maps=pd.read_parquet(maps) if maps.is_file() else None,
        fusion=read_fusion(directory),
    )


def read_controls(directory: Path, fold: int) -> Controls:
    """Read the files that `evaluate_controls` wrote."""
    scores = json.loads((directory / layout.CONTROLS).read_text(encoding="utf-8"))
    fitted = {name: file for name, file in LINEAR.items() if name in scores}
    linear = [TrainingRun(name, fold, 0, scores[name], pd.read_parquet(directory / file)) for name, file in fitted.items()]
    return Controls(fold, scores, linear)


def write_results(
    directory: Path, runs: Sequence[TrainingRun], controls: Sequence[Controls], params: EvaluateParams
) -> dict[str, Any]:
    """Write results.json and results.csv (one row per model) and return the numbers of training runs and of pairs.

    results.json holds:

    - `models`: a `Summary` for each model, in the order of `runs`, followed by the linear baselines
    - `controls`: their video accuracy over folds
    - `pairs`: a `Pair` for each two models, fusions among them
    - `fusions`: a `FusionSummary` for each fusion
    - `attention_claims`: a `Claim` for each measure
    """
    every_run = [*runs, *(linear for control in controls for linear in control.linear)]
    summaries, pairs = summarise(every_run), compare(every_run, params)
    results = {
        "models": [asdict(row) for row in summaries],
        "controls": _control_rows([control.scores for control in controls]),
        "pairs": [asdict(pair) for pair in pairs],
        "fusions": [asdict(fusion) for fusion in summarise_fusions(runs, summaries, pairs)],
        "attention_claims": [asdict(claim) for claim in attention_claims(runs)],
    }
    (directory / layout.RESULTS).write_text(json.dumps(results, indent=2), encoding="utf-8")
    results_table(summaries, pairs).to_csv(directory / "results.csv", index=False, float_format="%.6g")
    return {"training_runs": len(runs), "pairs": len(pairs)}


def _control_rows(scores: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each control's video accuracy: for one fold with its own spread, for several with the deviation between folds."""
    if not scores:
        return {}
    permuted = [row["permuted_labels"] for row in scores]
    metadata = [row["metadata"] for row in scores]
    one = len(scores) == 1
    return {
        "permuted_labels": {
            **permuted[0],
            **_over_folds([row["mean"] for row in permuted]),
            "labels_changed": mean(row["labels_changed"] for row in permuted),
            "highest": max(row["highest"] for row in permuted),
            **({"standard_deviation": permuted[0]["standard_deviation"]} if one else {}),
        },
        "metadata": {
            **_over_folds([row["video_accuracy"] for row in metadata]),
            "interval": metadata[0]["intervals"]["video_accuracy"] if one else None,
        },
    }


def _over_folds(accuracies: Sequence[float]) -> dict[str, float | None]:
    return {"mean": mean(accuracies), "standard_deviation": stdev(accuracies) if len(accuracies) > 1 else None}


def results_table(summaries: Iterable[Summary], pairs: Sequence[Pair]) -> pd.DataFrame:
    """Return one row per model: metrics, their intervals or deviations, and Holm-adjusted p-values against the other models."""
    table = pd.DataFrame([_named(summary) | _p_values(summary.model, pairs) for summary in summaries])
    return table.dropna(axis=1, how="all")


def _named(summary: Summary) -> dict[str, Any]:
    """Return a model's metrics under their column names in results.csv."""
    row: dict[str, Any] = {"model": summary.model, "folds x seeds": summary.num_training_runs}
    for name, title in COLUMNS.items():
        low, high = summary.intervals.get(name, (None, None))
        row[title] = summary.mean.get(name)
        row |= {f"{title}, 95 % from": low, f"{title}, 95 % to": high}
        row[f"{title}, sd"] = summary.standard_deviation.get(name)
    return row


def _p_values(model: str, pairs: Iterable[Pair]) -> dict[str, float]:
    others = {pair.second if pair.first == model else pair.first: pair for pair in pairs if model in (pair.first, pair.second)}
    return {f"p against {other} (Holm)": pair.p_holm for other, pair in others.items()}
