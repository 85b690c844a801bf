"""Chunking thousands of videos in hundreds of shards: the same result as plain code, in time that grows as their number."""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest

from pipeline_lib.chunk import chunk_collection
from pipeline_lib.chunk.splits import choose_groups
from pipeline_lib.datasets.registry import NAMES, find_data_set
from pipeline_lib.params import ChunkParams
from pipeline_lib.subsample.shards import COLUMNS

CLASS_VIDEOS, GROUP_VIDEOS, SHARD_VIDEOS = 500, 11, 64
LABELS = {"0": "unused", "1": "train", "2": "test"}


def video_table(num_videos: int) -> pd.DataFrame:
    """Return videos of 1 to 300 frames with UCF-101's kind of names; one in a hundred is quarantined."""
    rows = []
    for number in range(num_videos):
        of_class, index = divmod(number, CLASS_VIDEOS)
        group, clip = divmod(index, GROUP_VIDEOS)
        video = f"c{of_class:02}/v_c{of_class:02}_g{group:02}_c{clip:02}.avi"
        is_lost = number % 100 == 7
        rows.append((video, video[:3], 0 if is_lost else 1 + number * 37 % 300, "no video stream" if is_lost else None))
    return pd.DataFrame(rows, columns=["video", "class_name", "num_frames", "reason"])


def write_shards(directory: Path, videos: pd.DataFrame) -> list[Path]:
    whole = videos.reindex(columns=list(COLUMNS)).astype(COLUMNS | {"width": "float64", "height": "float64"})
    shards = []
    for first in range(0, len(whole), SHARD_VIDEOS):
        shards.append(directory / f"shard {first}")
        shards[-1].mkdir(parents=True)
        whole.iloc[first : first + SHARD_VIDEOS].to_parquet(shards[-1] / "videos.parquet", index=False)
    return shards


def write_splits(directory: Path, videos: pd.DataFrame) -> Path:
    """Write HMDB-51's kind of split files: of three groups of a class one trains, one tests, and one is unused."""
    directory.mkdir()
    for class_name, rows in videos.groupby("class_name"):
        names = [PurePosixPath(video).name for video in rows["video"]]
        lines = [f"{name} {int(name.split('_g')[1][:2]) % 3} \n" for name in names]
        (directory / f"{class_name}_test_split1.txt").write_text("".join(lines), encoding="utf-8")
    return directory


def plain_group(video: str) -> str:
    path = PurePosixPath(video)
    groups = (find_data_set(name).group(path.stem) for name in NAMES)
    return next((group for group in groups if group is not None), str(path.with_suffix("")))


def chunk_plainly(shards: list[Path], splits: Path, params: ChunkParams) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of videos and clips by a loop over videos."""
    videos = pd.concat([pd.read_parquet(shard / "videos.parquet") for shard in shards], ignore_index=True)
    videos = videos[videos["reason"].isna()].sort_values("video", ignore_index=True)
    videos["group"] = [plain_group(video) for video in videos["video"]]
    labels = {
        f"{path.name.split('_test')[0]}/{line.split()[0]}": LABELS[line.split()[1]]
        for path in splits.iterdir()
        for line in path.read_text().splitlines()
    }
    videos["split"] = [labels[video] for video in videos["video"]]
    held_out = choose_groups(videos[videos["split"] == "train"], params.val_fraction, f"val {params.seed}")
    of_group = zip(videos["split"], videos["group"], strict=True)
    videos["split"] = ["val" if split == "train" and group in held_out else split for split, group in of_group]
    clips = pd.DataFrame(
        [
            (
                f"{row.video}#{first:05d}",
                row.video,
                row.class_name,
                row.group,
                row.split,
                first,
                min(30, row.num_frames - first),
            )
            for row in videos.itertuples()
            for first in range(0, row.num_frames, 30)
        ],
        columns=["clip", "video", "class_name", "group", "split", "first_frame", "valid_frames"],
    )
    return videos[["video", "class_name", "group", "split", "num_frames"]], clips


def test_the_tables_are_those_of_a_plain_loop_byte_for_byte(tmp_path: Path):
    videos = video_table(3_000)
    shards, splits = write_shards(tmp_path, videos), write_splits(tmp_path / "splits", videos)
    counts = chunk_collection(shards, tmp_path / "chunk", ChunkParams(), splits=splits, groups=None)
    for name, table in zip(("videos", "clips"), chunk_plainly(shards, splits, ChunkParams()), strict=True):
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
        assert (tmp_path / f"chunk/{name}.parquet").read_bytes() == (tmp_path / f"{name}.parquet").read_bytes()
        assert counts[name] == table["split"].value_counts().reindex(counts[name], fill_value=0).to_dict()


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[list[Path], Path]]:
    """Return shards and split files by number of videos."""
    folder, made = tmp_path_factory.mktemp("collections"), {}
    for num_videos in (500, 5_000, 20_000):
        videos = video_table(num_videos)
        made[num_videos] = write_shards(folder / f"{num_videos}", videos), write_splits(folder / f"{num_videos} splits", videos)
    return made


@pytest.mark.parametrize("is_official", [True, False])
def test_time_grows_as_the_number_of_videos(tmp_path: Path, collections: dict[int, tuple[list[Path], Path]], is_official: bool):
    def cpu_seconds(num_videos: int) -> float:
        shards, splits = collections[num_videos]
        started = time.process_time()
        chunk_collection(shards, tmp_path, ChunkParams(), splits=splits if is_official else None, groups=None)
        return time.process_time() - started

    cpu_seconds(500)  # the first time imports
    small, large = (min(cpu_seconds(num_videos) for _ in range(2)) for num_videos in (5_000, 20_000))
    assert large < 8 * small  # 4 if linear, 16 if quadratic
