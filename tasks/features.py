"""features: extract the streams of every shard's clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Recipe, digest, layout
from pipeline_lib.compute.engine import Needs, run_at
from pipeline_lib.compute.planning import SideBySide, training_needs, uses_gpu
from pipeline_lib.errors import UserError, naming
from pipeline_lib.params import ChunkParams, Device, StreamParams
from tasks.progress import advance
from tasks.stage import Context, Ref, Refs, stage_of_several

VERSION = "features-2"

FeaturesOfModel = Mapping[str, Sequence[Refs]]
"""The streams that a model reads, by name: what each shard's task returned."""


def backbone_recipe(context: Context, params: StreamParams) -> dict[str, Any]:
    """Return the parameters of a stream, with weights files identified by their digests."""
    values = params.recipe()
    folder = Path(params.backbone.removeprefix("hf:")).expanduser()
    if params.backbone.startswith("hf:") and folder.is_dir():
        values["backbone"] = f"hf: sha256 {_sha256(context, folder, 'backbone')}"
    for key, path in weights_files(params).items():
        values[key] = f"sha256 {_sha256(context, path, key)}"
    return values


def _sha256(context: Context, path: Path, key: str) -> str:
    """Return the digest of a weights file, or of a model's folder."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return digest([(file.name, context.store.digests.sha256(file)) for file in files])
    if not path.is_file():
        raise UserError(f"features.{key}: {path} does not exist; give a state dict file, or a name that is accepted there")
    return context.store.digests.sha256(path)


def weights_files(params: StreamParams) -> dict[str, Path]:
    """Return the absolute paths of a stream's weights that are a user's files, by their keys."""
    paths = {"weights": params.weights_path}
    paths["method_weights"] = Path(params.method_weights).expanduser() if params.method_weights else None
    return {key: path.absolute() for key, path in paths.items() if path}


def with_absolute_weights(params: StreamParams) -> StreamParams:
    """Return the parameters with absolute paths of weights, for workers in other working folders."""
    return params.model_copy(update={key: str(path) for key, path in weights_files(params).items()})


def recipes(
    context: Context,
    name: str,
    shard: Ref,
    backbones: Mapping[str, Ref],
    streams: Mapping[str, StreamParams],
    chunk: ChunkParams,
    fps: float,
) -> dict[str, Recipe]:
    """Return what each stream depends on: the shard's frames, how clips are cut, and the backbone; not the splits."""

    def recipe(stream: str, params: StreamParams) -> Recipe:
        inputs = {"shard": shard.content_key}
        inputs |= {"backbone": backbones[stream].content_key} if stream in backbones else {}
        with naming(f"stream {stream}"):
            backbone = backbone_recipe(context, params)
        return Recipe("features", VERSION, backbone | chunk.cut_recipe() | {"fps": fps}, inputs)

    return {stream: recipe(stream, params) for stream, params in streams.items()}


def needs_of_model(context: Context, device: Device, key: str, features: FeaturesOfModel, side_by_side: SideBySide) -> Needs:
    """Return the resources that training or evaluating one model on these features needs."""
    num_bytes = bytes_in_memory(context, features)
    return training_needs(device, num_bytes, side_by_side.number, is_limit=side_by_side.is_limit, key=key)


def bytes_in_memory(context: Context, features: FeaturesOfModel) -> int:
    """Return the size of a model's features when they are read."""
    return sum(_bytes_in_memory(context, shard[stream]) for stream, shards in features.items() for shard in shards)


def _bytes_in_memory(context: Context, features: Ref) -> int:
    """Return the size of features when they are read; artifacts from before it was counted are not compressed."""
    return features.counts.get("bytes_in_memory") or context.store.file_bytes(features, layout.FEATURES)


def feature_inputs(features: FeaturesOfModel) -> dict[str, str]:
    """Return the content keys of a model's features, as inputs of a recipe."""
    return {
        f"{layout.FEATURE_INPUTS[position]} {number}": shard[stream].content_key
        for position, (stream, shards) in enumerate(features.items())
        for number, shard in enumerate(shards)
    }


def feature_files(context: Context, features: FeaturesOfModel) -> list[Path]:
    """Return the paths of a model's feature files of a fold, for `run_at`: one a shard, stream by stream."""
    return [shard[stream].directory(context) / layout.FEATURES for stream, shards in features.items() for shard in shards]


@stage_of_several(recipes, task_run_name="features {name}")
def features(
    directories: Mapping[str, Path],
    context: Context,
    name: str,
    shard: Ref,
    backbones: Mapping[str, Ref],
    streams: Mapping[str, StreamParams],
    chunk: ChunkParams,
    fps: float,
) -> Mapping[str, Mapping[str, Any]]:
    """Extract the streams of a shard together, so that its videos are decoded once; with the fine-tuned backbones."""
    from pipeline_lib.features import SHARDS_ON_GPU, extract_features

    on_gpu = uses_gpu(next(iter(streams.values())).device, key="features.device")
    return run_at(
        extract_features,
        shard.directory(context),
        directories,
        {stream: with_absolute_weights(streams[stream]) for stream in directories},
        chunk,
        fps=fps,
        weights={stream: ref.directory(context) / layout.BACKBONE for stream, ref in backbones.items()},
        needs=Needs(cpus=0, gpus=1 / SHARDS_ON_GPU) if on_gpu else Needs(cpus=math.inf),
        callbacks={"on_frames": lambda frames: advance("features", frames)},
    )
