"""train: one model on the training part's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.artifacts import Recipe
from pipeline_lib.params import ModelParams
from tasks.features import feature_files
from tasks.placing import plan_models, run_at
from tasks.progress import advance
from tasks.stage import Context, Ref, stage
from tasks.tracking import log_epoch

if TYPE_CHECKING:
    from pipeline_lib.workers.hardware import Plan

VERSION = "train-2"


def recipe(
    context: Context, cell: str, clips: Ref, features: Sequence[Ref], params: ModelParams, mlflow_run_id: str | None
) -> Recipe:
    """A model depends on the clip table, on the features and on its own parameters; not on what the run calls it."""
    inputs = {"clips": clips.content_key} | {f"features {n}": shard.content_key for n, shard in enumerate(features)}
    return Recipe("train", VERSION, params.recipe(), inputs)


def plan(context: Context, features: Sequence[Ref], params: ModelParams, **others: Any) -> Plan:
    """Plan the training of the run's models."""
    return plan_models(params.device, "train.device", feature_files(context, features), context.alike, context.workers)


@stage(recipe, worker="model", plan=plan, task_run_name="train {cell}")
def train(
    directory: Path,
    context: Context,
    cell: str,
    clips: Ref,
    features: Sequence[Ref],
    params: ModelParams,
    mlflow_run_id: str | None,
    plan: Plan,
) -> Mapping[str, Any]:
    """Train the model beside others, or go on from its last finished epoch; log every epoch to its MLflow run."""
    from pipeline_lib.chunk import check_trainable
    from pipeline_lib.tables import read_clips
    from pipeline_lib.train import train_model

    def on_epoch(record: Mapping[str, float]) -> None:
        advance("train")
        log_epoch(mlflow_run_id, record)

    partial = context.store.partial(
        recipe(context=context, cell=cell, clips=clips, features=features, params=params, mlflow_run_id=mlflow_run_id)
    )
    files = feature_files(context, features)
    table = read_clips(clips.directory(context))
    check_trainable(table)  # before hours of training, not after
    return run_at(plan, train_model, table, files, directory, partial, params, callbacks={"on_epoch": on_epoch})
