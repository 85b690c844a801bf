"""What a sweep leaves in its artifact: all trials, the best of them, and what mattered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.sweep.study import Study
from pipeline_lib.sweep.trials import Trial, best_of

TRIALS = "trials.csv"

FEWEST_FOR_IMPORTANCE = 10
"""Finished trials; of made-up studies of 8, every other one named the wrong hyper-parameter, and of 15 one in six."""


def write_results(directory: Path, study: Study) -> dict[str, Any]:
    """Write `trials.csv`, `best.json` and `importance.json`, and return the counts."""
    trials = study.trials()
    best = best_of(trials)
    _tabulate(trials).to_csv(directory / TRIALS, index=False, float_format="%.6g")
    _write_json(directory / layout.BEST_TRIAL, best.params)
    _write_json(directory / layout.IMPORTANCE, _weigh(study, trials))
    return _count(trials, best)


def _tabulate(trials: Sequence[Trial]) -> pd.DataFrame:
    """Return one row a trial. No durations: they differ between sweeps that are otherwise equal."""
    return pd.DataFrame([_row(trial) for trial in trials])


def _row(trial: Trial) -> dict[str, Any]:
    kept = trial.kept if trial.state != "failed" else None
    return {
        "trial": trial.number,
        "state": trial.state,
        "default": trial.is_default,
        "val_clip_accuracy": trial.value,
        "val_calibrated_loss": kept["val_calibrated_loss"] if kept else None,
        "kept_epoch": kept["epoch"] if kept else None,
        "epochs": len(trial.history),
        **{name: json.dumps(value) if value is None else value for name, value in trial.params.items()},
        "reason": trial.reason,
    }


def _weigh(study: Study, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return `importance` by hyper-parameter, in sum 1, the number of `trials` it is from, and a `note` if there is none."""
    finished = [trial for trial in trials if trial.state != "failed"]
    note = None
    if len(finished) < FEWEST_FOR_IMPORTANCE:
        note = f"{len(finished)} trials are too few to say what mattered; {FEWEST_FOR_IMPORTANCE} are needed"
    elif len({trial.value for trial in finished}) == 1:
        note = f"all {len(finished)} trials are equally accurate on the val split"
    return {"importance": {} if note else study.importances(), "trials": len(finished), "note": note}


def _count(trials: Sequence[Trial], best: Trial) -> dict[str, Any]:
    default = next(trial for trial in trials if trial.is_default and trial.state == "complete")
    states = [trial.state for trial in trials]
    return {
        "trials": states.count("complete") + states.count("pruned"),
        "pruned": states.count("pruned"),
        "failed": states.count("failed"),
        "best_trial": best.number,
        "best_val_clip_accuracy": best.value,
        "default_val_clip_accuracy": default.value,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
