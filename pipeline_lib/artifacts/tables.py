"""Read tables from the artifacts of stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.artifacts import layout


@dataclass(frozen=True, slots=True)
class CollectionVideo:
    """A video of the collection."""

    video: str
    """`<class>/<file name>`, the video's id in all stages."""
    class_name: str
    sha256: str | None = None


def read_shards(collection: Path, shard_videos: int) -> dict[str, list[CollectionVideo]]:
    """Divide a fetch artifact's videos into shards by class and name, with at most `shard_videos` each."""
    table = pd.read_parquet(collection / layout.COLLECTION).sort_values("video")
    shards = {}
    for class_name, rows in table.groupby("class_name"):
        columns = zip(rows["video"], rows["sha256"], strict=True)
        videos = [CollectionVideo(video, str(class_name), sha256) for video, sha256 in columns]
        for number, first in enumerate(range(0, len(videos), shard_videos)):
            shards[f"{class_name} {number + 1}"] = videos[first : first + shard_videos]
    return shards


def read_clips(chunk: Path) -> pd.DataFrame:
    """Return a chunk artifact's table of clips: clip, video, class_name, group, split, first_frame, valid_frames."""
    return pd.read_parquet(chunk / layout.CLIPS)


def read_videos(shards: Iterable[Path], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the table of videos of subsample shards, including quarantined ones; with `columns`, only these."""
    tables = [table for _, table in _read_tables(shards, columns)]
    # Joined before it becomes pandas' table, which would take milliseconds for each shard.
    return pa.concat_tables(tables, promote_options="permissive").to_pandas()


def video_paths(shards: Iterable[Path]) -> dict[str, Path]:
    """Return the path of every subsampled video by its id, without quarantined ones."""
    return {
        video: layout.subsampled_path(shard, video)
        for shard, table in _read_tables(shards, ["video", "reason"])
        for video, reason in zip(table["video"].to_pylist(), table["reason"].to_pylist(), strict=True)
        if reason is None
    }


def _read_tables(shards: Iterable[Path], columns: Sequence[str] | None) -> Iterator[tuple[Path, pa.Table]]:
    """Yield the table of each shard. `pandas.read_parquet` would take six times as long."""
    for shard in shards:
        with pq.ParquetFile(shard / layout.VIDEOS) as file:  # type: ignore[no-untyped-call]
            yield shard, file.read(columns, use_threads=False)
