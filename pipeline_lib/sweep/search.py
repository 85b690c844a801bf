"""The sweep stage: one model's hyper-parameters, from its features to the best of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.engine import num_gpus
from pipeline_lib.compute.needs import ROUNDING, Needs
from pipeline_lib.compute.planning import training_needs
from pipeline_lib.params import ModelParams, SweepParams
from pipeline_lib.sweep.results import write_results
from pipeline_lib.sweep.running import OnEpoch, OnTrial, run_study
from pipeline_lib.sweep.space import make_space
from pipeline_lib.sweep.storage import study_location
from pipeline_lib.sweep.study import Study
from pipeline_lib.train import train_model

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 8
"""More parallel trials than this degrade TPE and the median pruner to random search."""


def search(
    clips: pd.DataFrame,
    feature_files: Sequence[Path],
    directory: Path,
    study_folder: Path,
    params: SweepParams,
    base: ModelParams,
    *,
    features_bytes: int,
    streams: int | None = None,
    on_trial: OnTrial | None = None,
    database: str | None = None,
) -> dict[str, Any]:
    """Search the hyper-parameters of `base.model`, beginning with `base` itself, until `params.trials` are finished.

    Finished is a trial that was trained to its end or pruned. Trials are trained on the train split and compared by the val
    split's clip accuracy at the epoch of its lowest loss, equal ones by that loss; clips of other splits are not even read.
    `study_folder` outlives the run: a killed search, or one with more `trials`, goes on there. It belongs to one search: other
    clips, features or parameters need another one.

    Writes `trials.csv` (one row a trial), `best.json` (values for `train.overrides`) and `importance.json` (each
    hyper-parameter's share in the accuracy's variance, or a note why not) to `directory`.

    Args:
        clips: the clip table; with columns `clip`, `class_name`, `split` and `valid_frames`.
        feature_files: where the clips' features are.
        directory: the artifact's.
        study_folder: for the study.
        params: what is searched.
        base: the default; also what every trial has in common.
        features_bytes: size of the features in memory.
        streams: number of streams that the files hold (see `train_model`).
        on_trial: called here, in the caller's thread, once for each trial that is over, those of earlier runs first.
        database: address of a PostgreSQL server that keeps the study instead, under the name of `study_folder`.

    Returns:
        How many `trials` are finished, of them `pruned`, and how many `failed`; `best_trial`, and the accuracies
        `best_val_clip_accuracy` and `default_val_clip_accuracy`.

    Raises:
        UserError: the default cannot be trained, trials fail one after the other, or the database cannot be used.
    """
    known = clips[clips["split"].isin(("train", "val"))].reset_index(drop=True)
    val_clips = int((known["split"] == "val").sum())
    needs, at_once = _plan(features_bytes, params, base)
    location = study_location(study_folder, database)
    with location.hold():
        study = Study(location, make_space(params, base), seed=params.seed, val_clips=val_clips)
        objective = partial(_train, known, feature_files, streams)
        run_study(study, objective, at_once, needs, params.trials, on_trial)
        return write_results(directory, study)


def _train(
    clips: pd.DataFrame,
    feature_files: Sequence[Path],
    streams: int | None,
    params: ModelParams,
    on_epoch: OnEpoch,
) -> None:
    """Train a model and keep nothing of it; what counts has been reported, epoch by epoch."""
    train_model(clips, feature_files, None, None, params, streams=streams, on_epoch=on_epoch)


def _plan(features_bytes: int, params: SweepParams, base: ModelParams) -> tuple[Needs, int]:
    """Return what a trial needs, and how many run at once."""
    limit = params.workers or MAX_AT_ONCE
    needs = training_needs(base.device, features_bytes, limit, is_limit=bool(params.workers), key="train.device")
    at_once = min(limit, _num_places(needs))
    logger.info("sweep of %s: %d trials at once", base.model, at_once)
    return needs, at_once


def _num_places(needs: Needs) -> int:
    if needs.gpus:
        return num_gpus() * int(1 / needs.gpus + ROUNDING)
    return 1 if math.isinf(needs.cpus) else int(num_cores() / needs.cpus + ROUNDING)
