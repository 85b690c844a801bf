"""The sweep stage: one model's hyper-parameters, from its features to the best of them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import digest
from pipeline_lib.compute.devices import choose_device
from pipeline_lib.compute.planning import Plan, plan_trainings
from pipeline_lib.params import ModelParams, SweepParams
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.sweep.objective import TrainingObjective
from pipeline_lib.sweep.results import write_results
from pipeline_lib.sweep.running import OnTrial, run_study
from pipeline_lib.sweep.space import make_space
from pipeline_lib.sweep.study import Study

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 8
"""Of ten trials under way the sampler knows no result and the pruner no median; with more of them at once a search becomes a
lottery."""
NOT_CONTENT = {"enabled", "models", "trials"}
"""Fields of `sweep` that a study does not depend on: with more trials, it goes on."""


def search(
    clips: pd.DataFrame,
    feature_files: Sequence[Path],
    directory: Path,
    study_folder: Path,
    params: SweepParams,
    base: ModelParams,
    *,
    on_trial: OnTrial | None = None,
) -> dict[str, Any]:
    """Search the hyper-parameters of `base.model`, beginning with `base` itself, until `params.trials` are finished.

    Finished is a trial that was trained to its end or pruned. Trials are trained on the train split and compared by the val
    split's clip accuracy at the epoch of its lowest loss, equal ones by that loss; clips of other splits are not even read.
    `study_folder` outlives the run: a killed search, or one with more `trials`, goes on there, while other parameters or
    clips begin a study of their own beside it. Whoever runs a search must be the folder's only user.

    Writes `trials.csv` (one row a trial), `best.json` (values for `train.overrides`) and `importance.json` (each
    hyper-parameter's share in the accuracy's variance, or a note why not) to `directory`.

    Args:
        clips: the clip table; with columns `clip`, `class_name`, `split` and `valid_frames`.
        feature_files: where the clips' features are.
        directory: the artifact's.
        study_folder: for the study, and for what trainings write and nobody keeps.
        params: what is searched.
        base: the default; also what every trial has in common.
        on_trial: called here, in the caller's thread, once for each trial that is over, those of earlier runs first.

    Returns:
        How many `trials` are finished, of them `pruned`, and how many `failed`; `best_trial`, and the accuracies
        `best_val_clip_accuracy` and `default_val_clip_accuracy`.

    Raises:
        UserError: the default cannot be trained, trials fail one after the other, or no worker is left.
    """
    known = clips[clips["split"].isin(("train", "val"))].reset_index(drop=True)
    study = Study(
        study_folder,
        _name_study(known, params, base),
        make_space(params, base),
        seed=params.seed,
        val_clips=int((known["split"] == "val").sum()),
    )
    with study, _scratch(study_folder / "scratch") as scratch:
        plan = _plan(known, feature_files, params, base)
        objective = TrainingObjective(known, tuple(feature_files), scratch)
        run_study(study, objective, plan, params.trials, on_trial)
        return write_results(directory, study)


def _name_study(clips: pd.DataFrame, params: SweepParams, base: ModelParams) -> str:
    """Return a name that differs for studies that must not be mixed."""
    searched = {name: value for name, value in params.recipe().items() if name not in NOT_CONTENT}
    table = clips[["clip", "class_name", "split", "valid_frames"]].to_csv(index=False)
    return f"{base.model} {digest([searched, base.recipe(), table])[:12]}"


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make an empty folder and remove it afterwards, and first what a killed run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plan(clips: pd.DataFrame, feature_files: Sequence[Path], params: SweepParams, base: ModelParams) -> Plan:
    with FeatureReader(feature_files) as reader:
        frames, rows, columns, channels = reader.shape[-4:]
    features_bytes = 2 * len(clips) * frames * rows * columns * channels
    device = choose_device(base.device, key="train.device")
    plan = plan_trainings(device, features_bytes, MOST_AT_ONCE, params.workers)
    logger.info("sweep of %s: %d trials at once, in %d processes", base.model, plan.at_once, len(plan.places))
    return plan
