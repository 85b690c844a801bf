"""sweep: search one model's hyper-parameters on the train and val splits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.params import ModelParams, SweepParams
from tasks.features import FeaturesOfModel, bytes_in_memory, feature_files, feature_inputs
from tasks.mlflow.tracking import TrackedRun, log_trial
from tasks.progress import advance
from tasks.stage import Context, Ref, stage

if TYPE_CHECKING:
    from pipeline_lib.sweep.trials import Trial

VERSION = "sweep-2"


def recipe(
    context: Context,
    model: str,
    clips: Ref,
    features: FeaturesOfModel,
    params: SweepParams,
    base: ModelParams,
    mlflow_run: TrackedRun | None,
) -> Recipe:
    """Return what a sweep depends on: its search space, the default hyper-parameters, the clips and features."""
    inputs = {"clips": clips.content_key} | feature_inputs(features)
    values = params.recipe()
    for name in ("enabled", "models"):
        values.pop(name)
    return Recipe("sweep", VERSION, {"sweep": values, "base": base.recipe()}, inputs)


def study_folder(context: Context, recipe: Recipe) -> Path:
    """Return the folder of the study; independent of the number of trials, so that more trials extend it."""
    sweep = {name: value for name, value in recipe.params["sweep"].items() if name != "trials"}
    study = Recipe(recipe.stage, recipe.version, {**recipe.params, "sweep": sweep}, recipe.inputs)
    folder = context.folder / "sweeps" / study.key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@stage(recipe, task_run_name="sweep {model}")
def sweep(
    directory: Path,
    context: Context,
    made_from: Recipe,
    model: str,
    clips: Ref,
    features: FeaturesOfModel,
    params: SweepParams,
    base: ModelParams,
    mlflow_run: TrackedRun | None,
) -> Mapping[str, Any]:
    """Run or resume the search, and log every trial as an MLflow child run of the sweep."""
    from pipeline_lib.artifacts.tables import read_clips
    from pipeline_lib.postgresql import VARIABLE
    from pipeline_lib.sweep.search import search

    def on_trial(trial: Trial) -> None:
        advance("sweep")
        if mlflow_run:
            log_trial(mlflow_run, trial)

    files = feature_files(context, features)
    table = read_clips(clips.checkout(context, layout.CLIPS))
    study, database = study_folder(context, made_from), os.environ.get(VARIABLE)
    return search(
        table,
        files,
        directory,
        study,
        params,
        base,
        features_bytes=bytes_in_memory(context, features),
        streams=len(features),
        on_trial=on_trial,
        database=database,
    )


def read_best(directory: Path) -> dict[str, Any]:
    """Return the best hyper-parameters a sweep found, as `train.overrides` takes them."""
    best: dict[str, Any] = json.loads((directory / layout.BEST_TRIAL).read_text(encoding="utf-8"))
    return best
