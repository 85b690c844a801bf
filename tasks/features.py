"""features: each frame of a shard as the backbone's last feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.errors import UserError
from pipeline_lib.params import ChunkParams, FeaturesParams
from tasks.placing import plan_shards, run_at
from tasks.progress import advance
from tasks.stage import Context, Ref, stage

if TYPE_CHECKING:
    from pipeline_lib.compute.planning import Plan

VERSION = "features-2"


def backbone_recipe(context: Context, params: FeaturesParams) -> dict[str, Any]:
    """Return the feature parameters with a weights file named by its content."""
    values = params.recipe()
    if params.weights not in ("imagenet", "random"):
        path = Path(params.weights).expanduser()
        if not path.is_file():
            raise UserError(f"features.weights: {params.weights} is not there; give imagenet, random or a state dict file")
        values["weights"] = f"sha256 {context.store.digests.sha256(path)}"
    return values


def recipe(
    context: Context, name: str, shard: Ref, backbone: Ref | None, params: FeaturesParams, chunk: ChunkParams, fps: float
) -> Recipe:
    """Features depend on the shard's frames, on how clips are cut and on the backbone; not on the splits."""
    inputs = {"shard": shard.content_key} | ({"backbone": backbone.content_key} if backbone else {})
    return Recipe("features", VERSION, backbone_recipe(context, params) | chunk.cut_recipe() | {"fps": fps}, inputs)


def plan(params: FeaturesParams, **others: Any) -> Plan | None:
    """Plan a process for each GPU, if there are several."""
    return plan_shards(params.device)


def feature_files(context: Context, features: Sequence[Ref]) -> list[Path]:
    """Return the files that hold a fold's features."""
    return [shard.directory(context) / layout.FEATURES for shard in features]


@stage(recipe, worker="extractor", plan=plan, task_run_name="features {name}")
def features(
    directory: Path,
    context: Context,
    name: str,
    shard: Ref,
    backbone: Ref | None,
    params: FeaturesParams,
    chunk: ChunkParams,
    fps: float,
    plan: Plan | None,
) -> Mapping[str, Any]:
    """Write the shard's features, with the tuned backbone if there is one."""
    from pipeline_lib.features import extract_features

    weights = backbone.directory(context) / layout.BACKBONE if backbone else None
    return run_at(
        plan,
        extract_features,
        shard.directory(context),
        directory,
        params,
        chunk,
        fps=fps,
        weights=weights,
        callbacks={"on_frames": lambda frames: advance("features", frames)},
    )
