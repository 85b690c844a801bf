"""finetune: fine-tune a stream's backbone on frames of the training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.compute.engine import run_at
from pipeline_lib.compute.planning import whole_device
from pipeline_lib.errors import naming
from pipeline_lib.params import FinetuneParams, StreamParams
from tasks.features import backbone_recipe, with_absolute_weights
from tasks.progress import advance
from tasks.stage import Context, Ref, stage

VERSION = "finetune-5"


def recipe(
    context: Context, name: str, clips: Ref, shards: Sequence[Ref], params: FinetuneParams, stream: StreamParams
) -> Recipe:
    """Return what the weights depend on: the training frames and the initial backbone."""
    inputs = {"clips": clips.content_key} | {f"shard {n}": shard.content_key for n, shard in enumerate(shards)}
    with naming(f"stream {name}"):
        values = {"finetune": params.recipe(), "backbone": backbone_recipe(context, stream)}
    return Recipe("finetune", VERSION, values, inputs)


@stage(recipe, task_run_name="finetune {name}")
def finetune(
    directory: Path,
    context: Context,
    made_from: Recipe,
    name: str,
    clips: Ref,
    shards: Sequence[Ref],
    params: FinetuneParams,
    stream: StreamParams,
) -> Mapping[str, Any]:
    """Fine-tune a stream's backbone on a fold's training split and write its weights."""
    from pipeline_lib.artifacts.tables import read_clips, video_paths
    from pipeline_lib.finetune import finetune_backbone

    partial = context.store.partial(made_from)
    table = read_clips(clips.checkout(context, layout.CLIPS))
    paths = context.files(video_paths(shard.checkout(context, layout.VIDEOS) for shard in shards))
    with naming(f"stream {name}"):
        return run_at(
            finetune_backbone,
            table,
            paths.__getitem__,
            directory,
            partial,
            params,
            with_absolute_weights(stream),
            needs=whole_device(stream.device, key="features.device"),
            callbacks={"on_epoch": lambda epoch: advance("finetune")},
        )
