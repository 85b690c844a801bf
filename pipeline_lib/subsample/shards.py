"""Subsamples the videos of one shard, setting aside the ones that cannot be decoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.artifacts.tables import SourceVideo
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
"""Columns of `videos.parquet` and their types. A video with a `reason` is in quarantine and has no frames; one with `stderr`
alone is damaged, and the frames that decode were kept."""

QUARANTINE_EXAMPLES = 3


def subsample_shard(
    root: Path,
    videos: Sequence[SourceVideo],
    directory: Path,
    params: SubsampleParams,
    on_video: Callable[[str], None] | None = None,
) -> dict[str, int]:
    """Subsample `videos` below `root` into `directory/videos` and describe them in `directory/videos.parquet`.

    A video that cannot be decoded goes to quarantine: a row with its reason and the end of ffmpeg's stderr, and no file.

    Returns:
        How many `videos` and `frames` came out, and how many videos are `quarantined`.
    """
    rows = []
    for video in videos:
        rows.append(_subsample_or_quarantine(root, video, directory, params))
        if on_video:
            on_video(video.video)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    directory.mkdir(parents=True, exist_ok=True)
    table.to_parquet(directory / layout.VIDEOS, index=False)
    quarantined = int(table["reason"].notna().sum())
    return {"videos": len(table) - quarantined, "frames": int(table["num_frames"].sum()), "quarantined": quarantined}


def _subsample_or_quarantine(root: Path, video: SourceVideo, directory: Path, params: SubsampleParams) -> dict[str, Any]:
    row = {"video": video.video, "class_name": video.class_name, "source_sha256": video.sha256}
    destination = layout.subsampled_path(directory, video.video)
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = asdict(subsample_video(root / video.video, destination, params))
        if result["stderr"]:
            logger.warning("%s is damaged; the frames that decode are kept", video.video)
    except VideoError as error:
        logger.warning("quarantined %s: %s", video.video, error.reason)
        nothing = {"source_fps": float("nan"), "num_frames": 0, "width": 0, "height": 0}
        result = nothing | {"reason": error.reason, "stderr": error.stderr or None}
    if result["stderr"]:
        # What a shard holds must not depend on where it was made.
        result["stderr"] = result["stderr"].replace(f"{root.absolute()}/", "").replace(f"{directory.absolute()}/", "")
    return row | result


def check_quarantine(tables: Sequence[pd.DataFrame], max_quarantined: float) -> None:
    """Fail if too large a share of the videos described by the shards' tables is in quarantine.

    Raises:
        UserError: more than `max_quarantined` of all videos, or all of them.
    """
    table = pd.concat(tables, ignore_index=True)
    lost = table[table["reason"].notna()]
    if len(lost) <= max_quarantined * len(table) and (len(lost) < len(table) or table.empty):
        return
    examples = [f"{row.video} ({row.reason})" for row in lost.head(QUARANTINE_EXAMPLES).itertuples()]
    more = f", and {len(lost) - len(examples)} more" if len(lost) > len(examples) else ""
    raise UserError(
        f"{len(lost)} of {len(table)} videos cannot be decoded, more than subsample.max_quarantined = "
        f"{max_quarantined:g} allows: {', '.join(examples)}{more}; replace or remove them, or allow more"
    )
