"""features: extract the backbone's last feature map of every frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.compute.engine import Needs, run_at
from pipeline_lib.compute.planning import SideBySide, training_needs, uses_gpu
from pipeline_lib.errors import UserError
from pipeline_lib.params import ChunkParams, Device, FeaturesParams
from tasks.progress import advance
from tasks.stage import Context, Ref, stage

VERSION = "features-2"


def backbone_recipe(context: Context, params: FeaturesParams) -> dict[str, Any]:
    """Return the feature parameters, with a weights file identified by its digest."""
    values = params.recipe()
    if path := weights_file(params):
        if not path.is_file():
            raise UserError(f"features.weights: {params.weights} does not exist; give imagenet, random or a state dict file")
        values["weights"] = f"sha256 {context.store.digests.sha256(path)}"
    return values


def weights_file(params: FeaturesParams) -> Path | None:
    """Return the absolute path of the backbone's weights if they are a user's file."""
    return None if params.weights in ("imagenet", "random") else Path(params.weights).expanduser().absolute()


def with_absolute_weights(params: FeaturesParams) -> FeaturesParams:
    """Return the parameters with an absolute weights path, for workers in other working folders."""
    path = weights_file(params)
    return params.model_copy(update={"weights": str(path)}) if path else params


def recipe(
    context: Context, name: str, shard: Ref, backbone: Ref | None, params: FeaturesParams, chunk: ChunkParams, fps: float
) -> Recipe:
    """Return what features depend on: the shard's frames, how clips are cut, and the backbone; not the splits."""
    inputs = {"shard": shard.content_key} | ({"backbone": backbone.content_key} if backbone else {})
    return Recipe("features", VERSION, backbone_recipe(context, params) | chunk.cut_recipe() | {"fps": fps}, inputs)


def needs_of_model(device: Device, key: str, files: Sequence[Path], side_by_side: SideBySide) -> Needs:
    """Return the resources that training or evaluating one model on these features needs."""
    features_bytes = sum(file.stat().st_size for file in files)
    return training_needs(device, features_bytes, side_by_side.number, is_limit=side_by_side.is_limit, key=key)


def feature_files(context: Context, features: Sequence[Ref]) -> list[Path]:
    """Return a fold's feature files, one a shard."""
    return [shard.directory(context) / layout.FEATURES for shard in features]


@stage(recipe, task_run_name="features {name}")
def features(
    directory: Path,
    context: Context,
    name: str,
    shard: Ref,
    backbone: Ref | None,
    params: FeaturesParams,
    chunk: ChunkParams,
    fps: float,
) -> Mapping[str, Any]:
    """Extract the features of a shard, with the fine-tuned backbone if there is one."""
    from pipeline_lib.features import SHARDS_ON_GPU, extract_features

    on_gpu = uses_gpu(params.device, key="features.device")
    return run_at(
        extract_features,
        shard.directory(context),
        directory,
        params,
        chunk,
        fps=fps,
        weights=backbone.directory(context) / layout.BACKBONE if backbone else weights_file(params),
        needs=Needs(cpus=0, gpus=1 / SHARDS_ON_GPU) if on_gpu else Needs(cpus=math.inf),
        callbacks={"on_frames": lambda frames: advance("features", frames)},
    )
