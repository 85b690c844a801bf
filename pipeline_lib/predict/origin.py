"""From a checkpoint back to what it was made with: a workspace's artifacts tell the clips' length, the rate, the backbone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Artifact, Store, file_sha256, layout
from pipeline_lib.errors import UserError
from pipeline_lib.predict.bundle import ModelBundle, Preparation
from pipeline_lib.training.checkpoints import read_metadata


def find_training(store: Store, checkpoint: Path) -> Artifact:
    """Return the train artifact that holds the checkpoint, wherever the file given lies.

    Raises:
        UserError: the file is missing, no checkpoint, or of another workspace.
    """
    read_metadata(checkpoint)
    if trained := training_of(store, file_sha256(checkpoint)):
        return trained
    raise UserError(
        f"{checkpoint}: not trained in the workspace {store.workspace}, so its backbone is unknown; give its workspace, "
        "or the model's MLflow run id"
    )


def training_of(store: Store, checkpoint_sha256: str) -> Artifact | None:
    """Return the train artifact that holds a checkpoint of this digest, if any does."""
    for trained in artifacts_of(store, "train"):
        if any(file.sha256 == checkpoint_sha256 for file in trained.manifest.files):
            return trained
    return None


def bundle_of_training(store: Store, trained: Artifact, name: str | None = None) -> ModelBundle:
    """Return the parts of a trained model; a backbone that no artifact holds is made again, once, and kept in the workspace.

    Raises:
        UserError: what the model was made from is no longer there.
    """
    checkpoint = trained.path(layout.CHECKPOINT)
    metadata = read_metadata(checkpoint)
    features = _find(store, "features", trained.manifest.inputs["features 0"], checkpoint)
    shard = _find(store, "subsample", features.manifest.inputs["shard"], checkpoint)
    cut, rate = features.manifest.params, shard.manifest.params
    preparation = Preparation(name=name or metadata.model, fps=rate["fps"], crf=rate["crf"], frames=cut["frames"])
    tuned = features.manifest.inputs.get("backbone")
    if tuned:
        backbone = _find(store, "finetune", tuned, checkpoint).path(layout.BACKBONE)
    else:
        backbone = _kept_backbone(store, cut, metadata.features["weights_sha256"], checkpoint)
    return ModelBundle(preparation, checkpoint, backbone)


def artifacts_of(store: Store, stage: str) -> Iterator[Artifact]:
    """Yield a stage's artifacts, in the order of their keys."""
    return store.artifacts(stage)


def _find(store: Store, stage: str, content_key: str, checkpoint: Path) -> Artifact:
    for artifact in artifacts_of(store, stage):
        if artifact.content_key == content_key:
            return artifact
    raise UserError(
        f"{checkpoint}: the {stage} artifact it was made from is gone from {store.workspace}; run the pipeline again, "
        "or give the model's MLflow run id"
    )


def _kept_backbone(store: Store, params: dict[str, Any], sha256: str, checkpoint: Path) -> Path:
    """Return the weights that the features were made with, checked by their digest."""
    kept = store.workspace / "backbones" / sha256 / layout.BACKBONE
    if kept.is_file():
        return kept
    from safetensors.torch import save_file

    from pipeline_lib.backbones.build import build_backbone  # loads torchvision, for seconds

    weights = params["weights"]
    if weights.startswith("sha256 "):
        weights = _weights_file(store, weights.removeprefix("sha256 "), checkpoint)
    backbone = build_backbone(params["backbone"], weights, grid=params["grid"], seed=params["seed"])
    if backbone.weights_sha256 != sha256:
        raise UserError(
            f"{checkpoint}: trained on a {backbone.name} of other weights than `features.weights: {params['weights']}` gives "
            "now; run the pipeline again"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_name(f".{kept.name}.{os.getpid()}")
    save_file({key: value.contiguous() for key, value in backbone.extractor.state_dict().items()}, draft)
    draft.replace(kept)
    return kept


def _weights_file(store: Store, sha256: str, checkpoint: Path) -> str:
    """Return the path of a state dict of which the workspace knows only the digest."""
    for path in store.digests.paths(sha256):
        if path.is_file() and store.digests.sha256(path) == sha256:
            return str(path)
    raise UserError(f"{checkpoint}: the file of the backbone's weights (SHA-256 {sha256}) is no longer where it was")
