"""subsample: resample every video to one frame rate; undecodable videos are quarantined."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.artifacts.tables import CollectionVideo
from pipeline_lib.compute.engine import run_at
from pipeline_lib.params import SubsampleParams
from pipeline_lib.subsample import subsample_shard
from tasks.progress import advance
from tasks.stage import Context, Ref, stage

VERSION = "subsample-3"


def recipe(context: Context, shard: str, videos: Sequence[CollectionVideo], root: Path, params: SubsampleParams) -> Recipe:
    """Return what a shard depends on: its videos' bytes and the parameters, not paths or other shards."""
    values = params.recipe()
    values.pop("shard_videos")
    return Recipe("subsample", VERSION, values, {video.video: str(video.sha256) for video in videos})


@stage(recipe, task_run_name="subsample {shard}")
def subsample(
    directory: Path, context: Context, shard: str, videos: Sequence[CollectionVideo], root: Path, params: SubsampleParams
) -> Mapping[str, Any]:
    """Resample the shard's videos under `root` to `params.fps`."""
    _load_features_stage()
    return run_at(
        subsample_shard,
        context.files({video.video: root / video.video for video in videos}),
        videos,
        directory,
        params,
        callbacks={"on_video": lambda video: advance("subsample")},
    )


@functools.cache
def _load_features_stage() -> None:
    """Import PyTorch in the background while the first shard is resampled."""
    threading.Thread(target=importlib.import_module, args=("pipeline_lib.features.extraction",)).start()


@task(name="quarantine", cache_policy=NO_CACHE)
def quarantine(context: Context, shards: Sequence[Ref], params: SubsampleParams) -> None:
    """Fail if more videos than `params.max_quarantined` could not be decoded."""
    from pipeline_lib.artifacts.tables import read_videos
    from pipeline_lib.subsample import check_quarantine

    tables = (shard.checkout(context, layout.VIDEOS) for shard in shards)
    check_quarantine([read_videos(tables, ["video", "reason"])], params.max_quarantined)
