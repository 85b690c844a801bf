"""Trace a checkpoint through the workspace's artifacts to its backbone and the parameters of its inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.artifacts import Artifact, Store, file_sha256, layout
from pipeline_lib.errors import UserError
from pipeline_lib.params import StreamParams
from pipeline_lib.predict.bundle import FLOWS, InputSpec, ModelBundle
from pipeline_lib.training.checkpoints import read_metadata

if TYPE_CHECKING:
    from torch import Tensor


def find_training(store: Store, checkpoint: Path) -> Artifact:
    """Return the train artifact with the same checkpoint as the given file, which may be a copy.

    Raises:
        UserError: the file is missing, not a checkpoint, or from another workspace.
    """
    read_metadata(checkpoint)
    if trained := training_of(store, file_sha256(checkpoint)):
        return trained
    raise UserError(
        f"{checkpoint}: not trained in the workspace {store.workspace}, so its backbone is unknown; give its workspace, "
        "or the model's MLflow run id"
    )


def training_of(store: Store, checkpoint_sha256: str) -> Artifact | None:
    """Return the train artifact with a checkpoint of this SHA-256, or None."""
    for trained in artifacts_of(store, "train"):
        if any(file.sha256 == checkpoint_sha256 for file in trained.manifest.files):
            return trained
    return None


def bundle_of_training(store: Store, trained: Artifact, name: str | None = None) -> ModelBundle:
    """Return the bundle of a trained model.

    If no artifact has the backbone, it is built again and cached in the workspace.

    Raises:
        UserError: an artifact or a weights file that the model was made from is missing.
    """
    checkpoint = store.file(trained, layout.CHECKPOINT)
    metadata = read_metadata(checkpoint)
    inputs = [trained.manifest.inputs[f"{prefix} 0"] for prefix in layout.FEATURE_INPUTS[: len(metadata.streams)]]
    streams = [_find(store, "features", content_key, checkpoint) for content_key in inputs]
    shard = _find(store, "subsample", streams[0].manifest.inputs["shard"], checkpoint)
    cut, rate = streams[0].manifest.params, shard.manifest.params
    input_spec = InputSpec(name=name or metadata.model, fps=rate["fps"], crf=rate["crf"], frames=cut["frames"])
    backbones = [
        _backbone_of(store, features, provenance["weights_sha256"], checkpoint)
        for features, provenance in zip(streams, metadata.streams, strict=True)
    ]
    flow, flow_2 = (*(_flow_of(store, features, checkpoint) for features in streams), None)[:2]
    return ModelBundle(input_spec, checkpoint, tuple(backbones), (flow, flow_2))


def _backbone_of(store: Store, features: Artifact, sha256: str, checkpoint: Path) -> Path:
    """Return a file with the weights of the backbone that features were computed with."""
    if tuned := features.manifest.inputs.get("backbone"):
        return store.file(_find(store, "finetune", tuned, checkpoint), layout.BACKBONE)
    params = features.manifest.params
    stream = StreamParams(**{name: params[name] for name in StreamParams.model_fields if name in params})
    return _cached_backbone(store, stream, sha256, checkpoint)


def _flow_of(store: Store, features: Artifact, checkpoint: Path) -> Path | None:
    """Return a file with the weights that optical flow was computed with, or None if the user gave no path of them."""
    text = features.manifest.params.get("method_weights")
    if text is None:
        return None
    sha256 = text.removeprefix("sha256 ")
    cached = store.workspace / "backbones" / sha256 / FLOWS[0]
    if not cached.is_file():
        from pipeline_lib.backbones.weights import read_state_dict  # imports PyTorch, which is slow

        _save_weights(read_state_dict(Path(_weights_file(store, sha256, checkpoint))), cached)
    return cached


def artifacts_of(store: Store, stage: str) -> Iterator[Artifact]:
    """Yield a stage's artifacts in the order of their keys."""
    return store.artifacts(stage)


def _find(store: Store, stage: str, content_key: str, checkpoint: Path) -> Artifact:
    for artifact in artifacts_of(store, stage):
        if artifact.content_key == content_key:
            return artifact
    raise UserError(
        f"{checkpoint}: the {stage} artifact it was made from is no longer in {store.workspace}; run the pipeline again, "
        "or give the model's MLflow run id"
    )


def _cached_backbone(store: Store, stream: StreamParams, sha256: str, checkpoint: Path) -> Path:
    """Return a file with the backbone's weights, building it if needed and checking the weights' SHA-256."""
    cached = store.workspace / "backbones" / sha256 / layout.BACKBONE
    if cached.is_file():
        return cached
    from pipeline_lib.backbones.build import build_backbone  # imports torchvision, which is slow

    weights = stream.weights
    if weights.startswith("sha256 "):
        weights = _weights_file(store, weights.removeprefix("sha256 "), checkpoint)
    backbone = build_backbone(
        stream.backbone,
        weights,
        grid=stream.grid,
        seed=stream.seed,
        channels_in=stream.input_channels,
        image_size=stream.image_size,
    )
    if backbone.weights_sha256 != sha256:
        raise UserError(
            f"{checkpoint}: trained on a {backbone.name} with other weights than `features.weights: {stream.weights}` now "
            "has; run the pipeline again"
        )
    _save_weights(backbone.extractor.state_dict(), cached)
    return cached


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({key: value.contiguous() for key, value in weights.items()}, temporary)
    temporary.replace(path)


def _weights_file(store: Store, sha256: str, checkpoint: Path) -> str:
    """Return the path of a weights file by its SHA-256."""
    for path in store.digests.paths(sha256):
        if path.is_file() and store.digests.sha256(path) == sha256:
            return str(path)
    raise UserError(f"{checkpoint}: the weights file with SHA-256 {sha256} was moved or deleted; put it back")
