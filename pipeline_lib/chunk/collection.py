"""Write the tables of clips and videos of all shards of subsampled videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.artifacts.tables import read_videos
from pipeline_lib.chunk.clips import count_rests, cut_clips
from pipeline_lib.chunk.splits import (
    SPLITS,
    check_no_leaks,
    count_leaks,
    grouped_random_splits,
    official_splits,
    tutorial_splits,
)
from pipeline_lib.datasets.groups import video_groups
from pipeline_lib.datasets.registry import find_split_format
from pipeline_lib.datasets.split_files import label_videos, spell_as
from pipeline_lib.errors import UserError
from pipeline_lib.params import ChunkParams

VIDEO_COLUMNS = ["video", "class_name", "group", "split", "num_frames"]


def chunk_collection(
    shards: Sequence[Path], directory: Path, params: ChunkParams, *, splits: Path | None, groups: Path | None
) -> dict[str, Any]:
    """Write `clips.parquet`, `videos.parquet` and `missing.csv` (videos in split files but not in the collection).

    Args:
        shards: folders of the subsample stage, each with its `videos.parquet`.
        directory: folder to write to.
        params: clip length, policies, protocol.
        splits: folder of split files; None to draw splits at random by group.
        groups: table of groups; None to derive them from file names.

    Returns:
        counts of classes, groups, videos and clips by split, test videos whose group is also in the train split (`leaked`, 0
        except for `tutorial_code`), `missing` and `quarantined` videos, and videos padded or dropped by each policy.

    Raises:
        UserError: the split files, the groups or the collection are not usable.
    """
    collected = read_videos(shards, ["video", "class_name", "num_frames", "reason"]).sort_values("video", ignore_index=True)
    videos = collected[collected["reason"].isna()].reset_index(drop=True)
    _check_classes(collected, videos)
    videos["group"] = video_groups(videos, groups)
    missing = _assign_splits(videos, collected["video"], params, splits)
    check_no_leaks(videos, params.protocol)
    clips = cut_clips(videos, params)
    directory.mkdir(parents=True, exist_ok=True)
    clips.to_parquet(directory / layout.CLIPS, index=False)
    videos[VIDEO_COLUMNS].to_parquet(directory / layout.VIDEOS, index=False)
    missing.to_csv(directory / "missing.csv", index=False)
    unavailable = {"missing": len(missing), "quarantined": len(collected) - len(videos)}
    return _count(videos, clips, params) | unavailable


def _check_classes(collected: pd.DataFrame, videos: pd.DataFrame) -> None:
    empty = sorted(set(collected["class_name"].unique()) - set(videos["class_name"].unique()))
    if empty:
        raise UserError(f"class {empty[0]} has no video that can be decoded; replace its videos or remove its folder")
    if videos.empty:
        raise UserError("the collection has no videos; set fetch.videos to a folder `<class>/<video file>`")


def _assign_splits(videos: pd.DataFrame, collected: pd.Series, params: ChunkParams, splits: Path | None) -> pd.DataFrame:
    """Add the column `split` in place; return the videos that are listed but not collected."""
    if splits is None:
        if params.protocol != "official":
            raise UserError(f"chunk.protocol = {params.protocol} needs split files: set fetch.splits, or use official")
        videos["split"] = grouped_random_splits(videos, params)
        return pd.DataFrame(columns=["video", "class_name", "label"])
    assert not isinstance(params.fold, tuple), "one fold at a time (see ChunkParams.of_fold)"
    split_format = find_split_format(splits)
    listed = split_format.read(splits, params.fold)
    listed["video"] = spell_as(listed["video"], collected)
    videos["label"] = label_videos(videos, listed, splits, params.fold, split_format)
    videos["split"] = (official_splits if params.protocol == "official" else tutorial_splits)(videos, params)
    return listed[~listed["video"].isin(collected)]


def _count(videos: pd.DataFrame, clips: pd.DataFrame, params: ChunkParams) -> dict[str, Any]:
    used = videos[videos["split"] != "unused"]
    return {
        "classes": videos["class_name"].nunique(),
        "groups": used["group"].nunique(),
        "videos": {split: int((videos["split"] == split).sum()) for split in SPLITS},
        "clips": {split: int((clips["split"] == split).sum()) for split in SPLITS},
        "leaked": count_leaks(videos),
        **count_rests(used, params),
    }
