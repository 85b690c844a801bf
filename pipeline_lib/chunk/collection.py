"""Makes the tables of clips and of videos from the shards of subsampled videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.chunk.clips import count_rests, cut_clips
from pipeline_lib.chunk.parts import PARTS, check_no_leaks, count_leaks, drawn_parts, official_parts, tutorial_parts
from pipeline_lib.datasets.groups import source_groups
from pipeline_lib.datasets.split_files import label_videos, read_splits
from pipeline_lib.errors import UserError
from pipeline_lib.params import ChunkParams

CLIP_COLUMNS = ["clip", "video", "class_name", "group", "part", "first_frame", "valid_frames"]
VIDEO_COLUMNS = ["video", "class_name", "group", "part", "num_frames"]


def chunk_collection(
    shards: Sequence[Path], directory: Path, params: ChunkParams, *, splits: Path | None, sources: Path | None
) -> dict[str, Any]:
    """Write `clips.parquet`, `videos.parquet` and `missing.csv` (videos listed, not collected).

    Args:
        shards: folders of the subsample stage, each with its `videos.parquet`.
        directory: where the tables go.
        params: clip length, policies, protocol.
        splits: folder of split files; None to draw parts by source group.
        sources: table of sources; None to tell them from file names.

    Returns:
        Counts: classes, groups, videos and clips of each part, test videos whose source is also trained on (`leaked`; 0 but
        under `tutorial_code`), videos missing (listed in split files, not collected)
        and quarantined, and, of the videos in use, how many were padded or dropped as too short or for their tail.

    Raises:
        UserError: what is wrong with the split files, the sources or the collection.
    """
    described = pd.concat([pd.read_parquet(shard / layout.VIDEOS) for shard in shards], ignore_index=True)
    described = described.sort_values("video", ignore_index=True)
    videos = described[described["reason"].isna()].reset_index(drop=True)
    _check_classes(described, videos)
    videos["group"] = source_groups(videos, sources)
    missing = _deal_parts(videos, set(described["video"]), params, splits)
    check_no_leaks(videos, params.protocol)
    clips = cut_clips(videos, params).merge(videos[["video", "group", "part"]], on="video")
    directory.mkdir(parents=True, exist_ok=True)
    clips[CLIP_COLUMNS].to_parquet(directory / layout.CLIPS, index=False)
    videos[VIDEO_COLUMNS].to_parquet(directory / layout.VIDEOS, index=False)
    missing.to_csv(directory / "missing.csv", index=False)
    lost = {"missing": len(missing), "quarantined": len(described) - len(videos)}
    return _count(videos, clips, params) | lost


def _check_classes(described: pd.DataFrame, videos: pd.DataFrame) -> None:
    lost = sorted(set(described["class_name"]) - set(videos["class_name"]))
    if lost:
        raise UserError(f"class {lost[0]} has no video that can be decoded; replace its videos or remove its folder")
    if videos.empty:
        raise UserError("the collection has no videos; give fetch.videos a folder `<class>/<video file>`")


def _deal_parts(videos: pd.DataFrame, collected: set[str], params: ChunkParams, splits: Path | None) -> pd.DataFrame:
    """Add the column `part`; return the videos that are listed but were not collected."""
    if splits is None:
        if params.protocol != "official":
            raise UserError(f"chunk.protocol = {params.protocol} needs split files: give fetch.splits, or use official")
        videos["part"] = drawn_parts(videos, params)
        return pd.DataFrame(columns=["video", "class_name", "label"])
    assert not isinstance(params.split, tuple), "one split at a time, see ChunkParams.of_split"
    listed = read_splits(splits, params.split)
    videos["label"] = label_videos(videos, listed, splits, params.split)
    videos["part"] = (official_parts if params.protocol == "official" else tutorial_parts)(videos, params)
    return listed[~listed["video"].isin(collected)]


def _count(videos: pd.DataFrame, clips: pd.DataFrame, params: ChunkParams) -> dict[str, Any]:
    used = videos[videos["part"] != "unused"]
    return {
        "classes": videos["class_name"].nunique(),
        "groups": used["group"].nunique(),
        "videos": {part: int((videos["part"] == part).sum()) for part in PARTS},
        "clips": {part: int((clips["part"] == part).sum()) for part in PARTS},
        "leaked": count_leaks(videos),
        **count_rests(used, params),
    }
