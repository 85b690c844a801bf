"""train: one model on the training part's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pipeline_lib.artifacts import Recipe
from pipeline_lib.params import Device, ModelParams
from tasks.features import feature_files
from tasks.placing import plan_models, run_at
from tasks.progress import advance
from tasks.stage import Context, Ref, stage
from tasks.tracking import TrackedRun, log_epoch

if TYPE_CHECKING:
    from pipeline_lib.workers.hardware import Plan

VERSION = "train-3"


def recipe(
    context: Context, cell: str, clips: Ref, features: Sequence[Ref], params: ModelParams, mlflow_run: TrackedRun | None
) -> Recipe:
    """A model depends on the clip table, on the features and on its own parameters; not on what the run calls it."""
    inputs = {"clips": clips.content_key} | {f"features {n}": shard.content_key for n, shard in enumerate(features)}
    return Recipe("train", VERSION, params.recipe(), inputs)


def plan(context: Context, features: Sequence[Ref], params: ModelParams, **others: Any) -> Plan:
    """Plan the training of the run's models."""
    return plan_models(params.device, "train.device", feature_files(context, features), context.alike, context.workers)


@task(name="check", cache_policy=NO_CACHE, task_run_name="check split {split}")
def check(context: Context, split: int, clips: Ref, device: Device) -> None:
    """Fail if no model can be trained and judged on the split: before hours of training, not after."""
    from pipeline_lib.chunk import check_trainable
    from pipeline_lib.models.devices import choose_device
    from pipeline_lib.tables import read_clips

    choose_device(device, key="train.device")
    check_trainable(read_clips(clips.directory(context)))


@stage(recipe, worker="model", plan=plan, task_run_name="train {cell}")
def train(
    directory: Path,
    context: Context,
    made_from: Recipe,
    cell: str,
    clips: Ref,
    features: Sequence[Ref],
    params: ModelParams,
    mlflow_run: TrackedRun | None,
    plan: Plan,
) -> Mapping[str, Any]:
    """Train the model beside others, or go on from its last finished epoch; log every epoch to its MLflow run."""
    from pipeline_lib.tables import read_clips
    from pipeline_lib.train import train_model

    def on_epoch(record: Mapping[str, float]) -> None:
        advance("train")
        if mlflow_run:
            mlflow_run.log(log_epoch, dict(record))

    files, table = feature_files(context, features), read_clips(clips.directory(context))
    partial = context.store.partial(made_from)
    return run_at(plan, train_model, table, files, directory, partial, params, callbacks={"on_epoch": on_epoch})
