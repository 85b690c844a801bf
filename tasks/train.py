"""train: one model on the training part's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Recipe
from pipeline_lib.params import TrainParams
from tasks.progress import advance
from tasks.stage import Context, Ref, stage
from tasks.tracking import log_epoch

VERSION = "train-1"


def recipe(
    context: Context, model: str, clips: Ref, features: Sequence[Ref], params: TrainParams, mlflow_run_id: str | None
) -> Recipe:
    """A model depends on the clip table, on the features and on its own parameters."""
    inputs = {"clips": clips.content_key} | {f"features {n}": shard.content_key for n, shard in enumerate(features)}
    return Recipe("train", VERSION, params.model_recipe(model), inputs)


@stage(recipe, worker="device", task_run_name="train {model}")
def train(
    directory: Path,
    context: Context,
    model: str,
    clips: Ref,
    features: Sequence[Ref],
    params: TrainParams,
    mlflow_run_id: str | None,
) -> Mapping[str, Any]:
    """Train the model, or go on from its last finished epoch, and log every epoch to its MLflow run."""
    from pipeline_lib.tables import read_clips
    from pipeline_lib.train import train_model

    def on_epoch(record: Mapping[str, float]) -> None:
        advance("train")
        log_epoch(mlflow_run_id, record)

    partial = context.store.partial(
        recipe(context=context, model=model, clips=clips, features=features, params=params, mlflow_run_id=mlflow_run_id)
    )
    files = [shard.directory(context) / "features.h5" for shard in features]
    table = read_clips(clips.directory(context))
    return train_model(model, table, files, directory, partial, params, on_epoch=on_epoch)
