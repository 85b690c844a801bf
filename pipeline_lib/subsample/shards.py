"""Subsample the videos of one shard, and quarantine those that cannot be decoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.artifacts.tables import CollectionVideo
from pipeline_lib.errors import UserError
from pipeline_lib.params import SubsampleParams
from pipeline_lib.subsample.videos import subsample_video
from pipeline_lib.video.ffmpeg import VideoError

logger = logging.getLogger(__name__)

COLUMNS = {
    "video": "str",
    "class_name": "str",
    "source_sha256": "str",
    "source_fps": "float64",
    "num_frames": "int64",
    "width": "int64",
    "height": "int64",
    "reason": "str",
    "stderr": "str",
}
"""Columns and types of `videos.parquet`. A video with a `reason` is quarantined and has no frames. One with only `stderr` is
damaged; its decodable frames were kept."""

QUARANTINE_EXAMPLES = 3


def subsample_shard(
    sources: Mapping[str, Path],
    videos: Sequence[CollectionVideo],
    directory: Path,
    params: SubsampleParams,
    on_video: Callable[[str], None] | None = None,
) -> dict[str, int]:
    """Subsample `videos`, whose files are `sources`, to `directory/videos` and describe them in `directory/videos.parquet`.

    A video that cannot be decoded is quarantined: its row has the reason and the end of ffmpeg's stderr, and there is no file.

    Returns:
        the numbers of `videos` and `frames` written, and of `quarantined` videos.
    """
    rows = []
    for video in videos:
        rows.append(_subsample_or_quarantine(sources[video.video], video, directory, params))
        if on_video:
            on_video(video.video)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    directory.mkdir(parents=True, exist_ok=True)
    table.to_parquet(directory / layout.VIDEOS, index=False)
    quarantined = int(table["reason"].notna().sum())
    return {"videos": len(table) - quarantined, "frames": int(table["num_frames"].sum()), "quarantined": quarantined}


def _subsample_or_quarantine(source: Path, video: CollectionVideo, directory: Path, params: SubsampleParams) -> dict[str, Any]:
    row = {"video": video.video, "class_name": video.class_name, "source_sha256": video.sha256}
    destination = layout.subsampled_path(directory, video.video)
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = asdict(subsample_video(source, destination, params))
        if result["stderr"]:
            logger.warning("%s is damaged; keeping the frames that can be decoded", video.video)
    except VideoError as error:
        logger.warning("quarantined %s: %s", video.video, error.reason)
        no_video = {"source_fps": float("nan"), "num_frames": 0, "width": 0, "height": 0}
        result = no_video | {"reason": error.reason, "stderr": error.stderr or None}
    if result["stderr"]:
        # A shard's content must not depend on its location.
        root = str(source.absolute()).removesuffix(video.video)
        result["stderr"] = result["stderr"].replace(root, "").replace(f"{directory.absolute()}/", "")
    return row | result


def check_quarantine(tables: Sequence[pd.DataFrame], max_quarantined: float) -> None:
    """Check that the fraction of quarantined videos in the shards' tables is at most `max_quarantined`.

    Raises:
        UserError: more videos are quarantined, or all of them.
    """
    table = pd.concat(tables, ignore_index=True)
    quarantined = table[table["reason"].notna()]
    if len(quarantined) <= max_quarantined * len(table) and (len(quarantined) < len(table) or table.empty):
        return
    examples = [f"{row.video} ({row.reason})" for row in quarantined.head(QUARANTINE_EXAMPLES).itertuples()]
    more = f", and {len(quarantined) - len(examples)} more" if len(quarantined) > len(examples) else ""
    raise UserError(
        f"{len(quarantined)} of {len(table)} videos cannot be decoded, more than subsample.max_quarantined = "
        f"{max_quarantined:g} allows: {', '.join(examples)}{more}; replace or remove them, or allow more"
    )
