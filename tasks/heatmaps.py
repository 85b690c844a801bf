"""heatmaps: render one model's attention over selected test clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.compute.engine import Needs, run_at
from pipeline_lib.params import HeatmapsParams
from tasks.progress import advance
from tasks.stage import Context, Ref, stage

VERSION = "heatmaps-3"


def recipe(
    context: Context, training_run: str, evaluated: Ref, shards: Sequence[Ref], params: HeatmapsParams, fps: float
) -> Recipe:
    """Return what heatmaps depend on: the evaluation and the frames."""
    inputs = {"evaluated": evaluated.content_key} | {f"shard {n}": shard.content_key for n, shard in enumerate(shards)}
    return Recipe("heatmaps", VERSION, params.recipe() | {"fps": fps}, inputs)


@stage(recipe, task_run_name="heatmaps {training_run}")
def heatmaps(
    directory: Path,
    context: Context,
    training_run: str,
    evaluated: Ref,
    shards: Sequence[Ref],
    params: HeatmapsParams,
    fps: float,
) -> Mapping[str, Any]:
    """Render attention over correct and wrong test clips as MP4 and GIF, and the same clips without it."""
    from pipeline_lib.artifacts.tables import video_paths
    from pipeline_lib.heatmaps import render_heatmaps

    paths = context.files(video_paths(shard.checkout(context, layout.VIDEOS) for shard in shards))
    return run_at(
        render_heatmaps,
        evaluated.directory(context),
        paths.__getitem__,
        directory,
        params,
        fps=fps,
        needs=Needs(cpus=math.inf),
        callbacks={"on_clip": lambda clip: advance("heatmaps")},
    )
