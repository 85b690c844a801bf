"""train: train one model on the training split's features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.compute.engine import run_at
from pipeline_lib.compute.planning import SideBySide
from pipeline_lib.params import Device, ModelParams
from tasks.features import FeaturesOfModel, feature_files, feature_inputs, needs_of_model
from tasks.mlflow.tracking import TrackedRun, log_epoch
from tasks.progress import advance
from tasks.stage import Context, Ref, stage

VERSION = "train-3"


def recipe(
    context: Context,
    training_run: str,
    clips: Ref,
    features: FeaturesOfModel,
    params: ModelParams,
    mlflow_run: TrackedRun | None,
    side_by_side: SideBySide,
) -> Recipe:
    """Return what a model depends on: the clips, the features and its parameters; not its name in the run."""
    inputs = {"clips": clips.content_key} | feature_inputs(features)
    return Recipe("train", VERSION, params.recipe(), inputs)


@task(name="check", cache_policy=NO_CACHE, task_run_name="check fold {fold}")
def check(context: Context, fold: int, clips: Ref, device: Device) -> None:
    """Fail early if no model can be trained and evaluated on the fold."""
    from pipeline_lib.artifacts.tables import read_clips
    from pipeline_lib.chunk import check_trainable
    from pipeline_lib.compute.planning import uses_gpu

    uses_gpu(device, key="train.device")
    check_trainable(read_clips(clips.checkout(context, layout.CLIPS)))


@stage(recipe, task_run_name="train {training_run}")
def train(
    directory: Path,
    context: Context,
    made_from: Recipe,
    training_run: str,
    clips: Ref,
    features: FeaturesOfModel,
    params: ModelParams,
    mlflow_run: TrackedRun | None,
    side_by_side: SideBySide,
) -> Mapping[str, Any]:
    """Train the model, or resume after its last finished epoch; log every epoch to MLflow."""
    from pipeline_lib.artifacts.tables import read_clips
    from pipeline_lib.train import train_model

    def on_epoch(record: Mapping[str, float]) -> None:
        advance("train")
        if mlflow_run:
            mlflow_run.log(log_epoch, dict(record))

    files, table = feature_files(context, features), read_clips(clips.checkout(context, layout.CLIPS))
    partial = context.store.partial(made_from)
    needs = needs_of_model(context, params.device, "train.device", features, side_by_side)
    return run_at(
        train_model,
        table,
        files,
        directory,
        partial,
        params,
        streams=len(features),
        needs=needs,
        callbacks={"on_epoch": on_epoch},
    )
