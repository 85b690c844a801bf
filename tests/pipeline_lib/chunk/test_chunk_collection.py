from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from pipeline_lib.chunk import check_trainable, chunk_collection
from pipeline_lib.chunk.splits import count_leaks, tutorial_splits
from pipeline_lib.datasets.hmdb51 import Hmdb51Splits
from pipeline_lib.datasets.registry import group_of_name
from pipeline_lib.params import ChunkParams
from pipeline_lib.subsample.shards import COLUMNS


def write_shard(directory: Path, videos: Iterable[str], num_frames: int = 40, lost: Iterable[str] = ()) -> Path:
    """Write the table that the subsample stage writes."""
    rows = [(video, video.split("/")[0], num_frames, None) for video in videos]
    rows += [(video, video.split("/")[0], 0, "no video stream") for video in lost]
    directory.mkdir(parents=True)
    table = pd.DataFrame(rows, columns=["video", "class_name", "num_frames", "reason"])
    table.reindex(columns=list(COLUMNS)).astype(COLUMNS | {"width": "float", "height": "float"}).to_parquet(
        directory / "videos.parquet", index=False
    )
    return directory


def write_splits(directory: Path, labels: dict[str, str], fold: int = 1) -> Path:
    """Write official split files from the lines of each class."""
    directory.mkdir(exist_ok=True)
    for class_name, lines in labels.items():
        (directory / f"{class_name}_test_split{fold}.txt").write_text(lines, encoding="utf-8")
    return directory


def chunk(tmp_path: Path, shards: list[Path], params: ChunkParams | None = None, **tables: Path) -> dict:
    tables = {"splits": None, "groups": None} | tables
    return chunk_collection(shards, tmp_path / "chunk", params or ChunkParams(), **tables)


def read_splits_of(tmp_path: Path) -> dict[str, str]:
    return pd.read_parquet(tmp_path / "chunk/videos.parquet").set_index("video")["split"].to_dict()


HMDB51_FRAMES = (9, 30, 44, 61)


@pytest.fixture(scope="module")
def hmdb51(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All names of HMDB-51 as a shard, made of the split files by other means than the pipeline's, and these files."""
    splits = shared / "data/hmdb51_splits"
    videos = [
        f"{path.name.removesuffix('_test_split2.txt')}/{line.split(' ')[0]}"
        for path in splits.iterdir()
        if path.name.endswith("_test_split2.txt")
        for line in path.read_text().splitlines()
    ]
    assert len(videos) == 6766
    return write_shard(tmp_path_factory.mktemp("hmdb51") / "shard", videos), splits


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_hmdb51_official(tmp_path: Path, hmdb51: tuple[Path, Path], fold: int):
    shard, splits = hmdb51
    counts = chunk(tmp_path, [shard], ChunkParams(fold=fold), splits=splits)
    videos = pd.read_parquet(tmp_path / "chunk/videos.parquet")
    assert (counts["classes"], counts["missing"], counts["quarantined"]) == (51, 0, 0)
    assert counts["videos"]["train"] + counts["videos"]["val"] == 3570
    assert (counts["videos"]["test"], counts["videos"]["unused"]) == (1530, 1666)
    of_class = videos.groupby("class_name")["split"].value_counts().unstack()
    assert (of_class["train"] + of_class["val"] == 70).all()
    assert (of_class["test"] == 30).all()
    assert of_class["val"].between(1, 20).all()
    assert counts["videos"]["val"] / 3570 == pytest.approx(0.15, abs=0.01)
    assert videos["group"].nunique() == 2291
    used = videos[videos["split"] != "unused"]
    assert (used.groupby("group")["split"].nunique() == 1).all()
    assert counts["groups"] == used["group"].nunique()
    check_trainable(pd.read_parquet(tmp_path / "chunk/clips.parquet"))


def test_hmdb51_tutorial(tmp_path: Path, hmdb51: tuple[Path, Path]):
    shard, splits = hmdb51
    counts = chunk(tmp_path, [shard], ChunkParams(protocol="tutorial"), splits=splits)
    assert counts["videos"] == {"train": 3570, "val": 1130, "test": 400, "unused": 1666}
    first = read_splits_of(tmp_path)
    chunk(tmp_path, [shard], ChunkParams(protocol="tutorial", seed=1), splits=splits)
    second = read_splits_of(tmp_path)
    changed = {split for video, split in first.items() if split != second[video]}
    assert changed == {"val", "test"}


def test_two_real_clips_with_all_split_files(tmp_path: Path, shared: Path, hmdb51: tuple[Path, Path]):
    clips = [f"{path.parent.name}/{path.name}" for path in (shared / "data/hmdb51_clips").glob("*/*")]
    shard = write_shard(tmp_path / "shard", clips)
    labels = {1: ["train", "test"], 2: ["train", "train"], 3: ["test", "train"]}
    for fold, expected in labels.items():
        counts = chunk(tmp_path, [shard], ChunkParams(fold=fold), splits=hmdb51[1])
        assert list(read_splits_of(tmp_path).values()) == expected
        assert (counts["classes"], counts["missing"]) == (2, 6764)
        missing = pd.read_csv(tmp_path / "chunk/missing.csv")
        assert len(missing) == 6764
        assert not missing["video"].isin(clips).any()
    with pytest.raises(ValueError, match=r"no training video in 1 of 2 classes \(brush_hair\)"):
        check_trainable(pd.read_parquet(tmp_path / "chunk/clips.parquet"))


UCF101_VIDEOS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}
"""Training and test videos of each fold."""


@pytest.fixture(scope="module")
def ucf101(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All names of UCF-101 as a shard, spelled as in its archive, and its lists."""
    splits = shared / "data/ucf101/ucfTrainTestlist"
    lines = [line for part in ("train", "test") for line in (splits / f"{part}list02.txt").read_text().splitlines()]
    videos = [line.split(" ")[0].replace("HandStandPushups/", "HandstandPushups/") for line in lines]
    assert len(videos) == 13320
    return write_shard(tmp_path_factory.mktemp("ucf101") / "shard", videos), splits


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_ucf101_official(tmp_path: Path, ucf101: tuple[Path, Path], fold: int):
    shard, splits = ucf101
    counts = chunk(tmp_path, [shard], ChunkParams(fold=fold), splits=splits)
    num_train, num_test = UCF101_VIDEOS[fold]
    assert (counts["classes"], counts["groups"], counts["missing"], counts["leaked"]) == (101, 2525, 0, 0)
    assert counts["videos"]["train"] + counts["videos"]["val"] == num_train
    assert (counts["videos"]["test"], counts["videos"]["unused"]) == (num_test, 0)
    assert counts["videos"]["val"] / num_train == pytest.approx(0.15, abs=0.02)
    videos = pd.read_parquet(tmp_path / "chunk/videos.parquet")
    assert (videos.groupby("group")["split"].nunique() == 1).all()


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_a_part_of_ucf101_is_split_by_its_own_lists_as_by_hmdb51_s_format(tmp_path: Path, shared: Path, fold: int):
    root = shared / "data/ucf101"
    shard = write_shard(tmp_path / "shard", [f"{path.parent.name}/{path.name}" for path in root.glob("videos/*/*")])
    counts, splits_of = [], []
    for splits in ("splits", "ucfTrainTestlist"):
        counts.append(chunk(tmp_path, [shard], ChunkParams(fold=fold), splits=root / splits))
        splits_of.append(read_splits_of(tmp_path))
    assert splits_of[0] == splits_of[1]
    assert len(splits_of[0]) == 193
    assert [count.pop("missing") for count in counts] == [0, 13320 - 193]
    assert counts[0] == counts[1]


def test_a_video_that_ucf101_s_lists_lack_is_named(tmp_path: Path, shared: Path):
    shard = write_shard(tmp_path / "shard", ["Archery/v_Archery_g01_c01.avi", "Archery/mine.avi", "Sleeping/mine.avi"])
    with pytest.raises(
        ValueError, match=r"trainlist01\.txt: does not list Archery/mine\.avi \(nor 1 other .* testlist01\.txt$"
    ):
        chunk(tmp_path, [shard], splits=shared / "data/ucf101/ucfTrainTestlist")


def test_fight_surv_by_its_own_splits_and_sources(tmp_path: Path, shared: Path):
    root = shared / "data/fight_surv"
    shard = write_shard(tmp_path / "shard", [f"{path.parent.name}/{path.name}" for path in root.glob("videos/*/*")])
    counts = chunk(tmp_path, [shard], splits=root / "splits", groups=root / "sources.csv")
    assert sum(counts["videos"].values()) == 127
    assert counts["missing"] == 0
    assert min(counts["videos"][split] for split in ("train", "val", "test")) > 10
    drawn = chunk(tmp_path, [shard], groups=root / "sources.csv")
    assert drawn["groups"] == counts["groups"]


@pytest.mark.parametrize(
    ("video", "group"),
    [
        ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "April_09_brush_hair"),
        ("kick/#1_-_(x)_[1]!&+;~@_kick_f_cm_np10_le_med_12.avi", "#1_-_(x)_[1]!&+;~@_kick"),
        ("BasketballDunk/v_BasketballDunk_g17_c03.avi", "v_BasketballDunk_g17"),
        ("fight/fi005.mp4", "fight/fi005"),
        ("fight/fi.005.mp4", "fight/fi.005"),
    ],
)
def test_the_file_name_tells_the_source(video: str, group: str):
    assert group_of_name(video) == group


def group_videos(num_groups: int = 10, per_group: int = 3) -> list[str]:
    return [f"{c}/v_{c}_g{group:02}_c{index:02}.avi" for c in "ab" for group in range(num_groups) for index in range(per_group)]


def test_without_split_files_whole_groups_are_drawn(tmp_path: Path):
    shard = write_shard(tmp_path / "shard", group_videos())
    counts = chunk(tmp_path, [shard])
    assert counts["videos"] == {"train": 36, "val": 6, "test": 18, "unused": 0}
    videos = pd.read_parquet(tmp_path / "chunk/videos.parquet")
    assert (videos.groupby("group")["split"].nunique() == 1).all()
    assert (videos.groupby("class_name")["split"].nunique() == 3).all()


def test_parts_do_not_depend_on_the_order_of_videos_or_shards(tmp_path: Path):
    videos = group_videos()
    one = write_shard(tmp_path / "one", videos)
    two = [write_shard(tmp_path / "two", videos[40:][::-1]), write_shard(tmp_path / "three", videos[:40])]
    chunk(tmp_path, [one])
    expected = {path.name: path.read_bytes() for path in (tmp_path / "chunk").iterdir()}
    chunk(tmp_path, two)
    assert {path.name: path.read_bytes() for path in (tmp_path / "chunk").iterdir()} == expected


def test_the_seed_draws_other_parts(tmp_path: Path):
    shard = write_shard(tmp_path / "shard", group_videos())
    drawn = []
    for seed in (0, 0, 1):
        chunk(tmp_path, [shard], ChunkParams(seed=seed))
        drawn.append(read_splits_of(tmp_path))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(("num_groups", "splits_of"), [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "val", "test"})])
def test_few_groups_go_as_far_as_they_can(tmp_path: Path, num_groups: int, splits_of: set[str]):
    chunk(tmp_path, [write_shard(tmp_path / "shard", group_videos(num_groups))])
    assert set(read_splits_of(tmp_path).values()) == splits_of


def test_the_table_of_clips(tmp_path: Path):
    chunk(tmp_path, [write_shard(tmp_path / "shard", group_videos(), num_frames=40, lost=["a/lost.avi"])])
    clips = pd.read_parquet(tmp_path / "chunk/clips.parquet")
    assert list(clips.columns) == ["clip", "video", "class_name", "group", "split", "first_frame", "valid_frames"]
    assert len(clips) == 120
    assert (clips["class_name"] == clips["video"].str.split("/").str[0]).all()
    splits_of = read_splits_of(tmp_path)
    assert (clips["split"] == clips["video"].map(splits_of)).all()
    assert "a/lost.avi" not in splits_of


def test_missing_and_quarantined_are_told_apart(tmp_path: Path):
    lines = "a 1 \nb 2 \n#c 0 \nlost 1 \ngone 2 \n"
    splits = write_splits(tmp_path / "splits", {"x": lines, "never": "z 1 \n"})
    shard = write_shard(tmp_path / "shard", ["x/a", "x/b", "x/#c"], lost=["x/lost"])
    counts = chunk(tmp_path, [shard], splits=splits)
    assert counts["videos"] == {"train": 1, "val": 0, "test": 1, "unused": 1}
    assert (counts["missing"], counts["quarantined"]) == (2, 1)
    assert list(pd.read_csv(tmp_path / "chunk/missing.csv")["video"]) == ["never/z", "x/gone"]
    assert (counts["tail_padded"], counts["short_padded"], counts["frames_dropped"]) == (2, 0, 0)


@pytest.mark.parametrize(
    "line", ["a.avi", "a.avi 3", "a.avi 1 2x", " 1", "a.avi,1", "a.avi train"], ids=lambda line: line.replace(" ", "_")
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str):
    splits = write_splits(tmp_path / "splits", {"x": f"b.avi 1 \n{line}\n"})
    shard = write_shard(tmp_path / "shard", ["x/b.avi"])
    with pytest.raises(
        ValueError, match=r"x_test_split1\.txt:2: .* accepted: `<video file> <label>`, label 0 unused"
    ) as caught:
        chunk(tmp_path, [shard], splits=splits)
    assert "\n" not in str(caught.value)


def test_split_files_may_end_lines_in_other_ways(tmp_path: Path):
    splits = write_splits(tmp_path / "splits", {"x": "\ufeffa b.avi 1\r\n\nc.avi 2  "})
    chunk(tmp_path, [write_shard(tmp_path / "shard", ["x/a b.avi", "x/c.avi"])], splits=splits)
    assert read_splits_of(tmp_path) == {"x/a b.avi": "train", "x/c.avi": "test"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"x": "a 1 \n"}, r"x_test_split1\.txt: does not list x/b; add a line for each"),
        ({"x": ""}, r"x_test_split1\.txt: does not list x/a \(nor 1 other video"),
        ({"x": "a 1 \nb 2 \na 1 \n"}, r"x_test_split1\.txt:3: a is listed twice"),
        ({"y": "a 1 \n"}, r"no split file for class x; add x_test_split1\.txt"),
        ({}, r"no split file `<class>_test_split1.txt` for chunk.fold = 1"),
    ],
    ids=["unknown video", "empty file", "twice", "no file of the class", "no file"],
)
def test_split_files_that_do_not_fit_the_collection(tmp_path: Path, lines: dict[str, str], message: str):
    splits = write_splits(tmp_path / "splits", lines)
    shard = write_shard(tmp_path / "shard", ["x/a", "x/b"])
    with pytest.raises(ValueError, match=message):
        chunk(tmp_path, [shard], splits=splits)


def test_a_split_file_that_is_no_text(tmp_path: Path):
    splits = write_splits(tmp_path / "splits", {"x": ""})
    (splits / "x_test_split1.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError, match=r"x_test_split1\.txt: not a text file"):
        chunk(tmp_path, [write_shard(tmp_path / "shard", ["x/a"])], splits=splits)


def test_the_tutorial_needs_split_files(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tutorial needs split files: set fetch.splits"):
        chunk(tmp_path, [write_shard(tmp_path / "shard", ["x/a"])], ChunkParams(protocol="tutorial"))


def test_a_source_that_crosses_parts_fails_the_run(tmp_path: Path):
    splits = write_splits(tmp_path / "splits", {"x": "v_x_g01_c01.avi 1 \nv_x_g01_c02.avi 2 \nv_x_g02_c01.avi 1 \n"})
    shard = write_shard(tmp_path / "shard", [f"x/v_x_{name}.avi" for name in ("g01_c01", "g01_c02", "g02_c01")])
    for protocol in ("official", "tutorial"):
        with pytest.raises(ValueError, match=r"group v_x_g01 crosses splits.*correct the split files"):
            chunk(tmp_path, [shard], ChunkParams(protocol=protocol), splits=splits)


def test_only_the_tutorial_lets_val_and_test_share_a_source(tmp_path: Path):
    names = [f"v_x_g{group:02}_c{index}.avi" for group in range(4) for index in range(10)]
    lines = "".join(f"{name} {2 if '_g00_' in name else 1} \n" for name in names)
    shard = write_shard(tmp_path / "shard", [f"x/{name}" for name in names])
    counts = chunk(tmp_path, [shard], ChunkParams(protocol="tutorial"), splits=write_splits(tmp_path / "splits", {"x": lines}))
    assert counts["videos"] == {"train": 30, "val": 7, "test": 3, "unused": 0}


def test_the_tutorials_code_trains_on_unused_videos_and_says_how_many_test_videos_share_their_source(tmp_path: Path):
    names = [f"v_x_g{group:02}_c{index}.avi" for group in range(4) for index in range(10)]
    labels = {0: 2, 1: 0, 2: 1, 3: 1}
    lines = "".join(f"{name} {labels[int(name[5:7])]} \n" for name in names) + "v_x_g00_c10.avi 0 \n"
    shard = write_shard(tmp_path / "shard", [f"x/{name}" for name in [*names, "v_x_g00_c10.avi"]])
    splits = write_splits(tmp_path / "splits", {"x": lines})
    counts = chunk(tmp_path, [shard], ChunkParams(protocol="tutorial_code"), splits=splits)
    assert counts["videos"] == {"train": 31, "val": 7, "test": 3, "unused": 0}
    assert counts["leaked"] == 3
    counts = chunk(tmp_path / "official", [shard], ChunkParams(protocol="official"), splits=splits)
    assert counts["videos"]["unused"] == 11
    assert counts["leaked"] == 0


@pytest.mark.parametrize(
    ("protocol", "splits_of", "leaked"),
    [
        ("tutorial", {"train": 3570, "val": 1130, "test": 400, "unused": 1666}, 0),
        ("tutorial_code", {"train": 5236, "val": 1130, "test": 400}, 184),
    ],
)
def test_the_tutorials_splits_of_the_real_split_files(shared: Path, protocol: str, splits_of: dict[str, int], leaked: int):
    videos = Hmdb51Splits().read(shared / "data" / "hmdb51_splits", 1)
    videos["group"] = videos["video"].map(group_of_name)
    videos["split"] = tutorial_splits(videos, ChunkParams(protocol=protocol))
    assert videos["split"].value_counts().to_dict() == splits_of
    assert count_leaks(videos) == leaked


def test_each_split_without_files_is_a_draw_of_its_own(tmp_path: Path):
    shard = write_shard(tmp_path / "shard", group_videos(num_groups=12, per_group=2))
    splits_of = []
    for fold in (1, 2, 3):
        chunk(tmp_path / str(fold), [shard], ChunkParams().of_fold(fold))
        splits_of.append(read_splits_of(tmp_path / str(fold)))
    assert splits_of[0] != splits_of[1] != splits_of[2] != splits_of[0]
    chunk(tmp_path / "again", [shard], ChunkParams(fold=1))
    assert read_splits_of(tmp_path / "again") == splits_of[0]


def test_a_video_in_two_shards_is_refused(tmp_path: Path):
    shards = [write_shard(tmp_path / name, ["x/a"]) for name in ("one", "two")]
    with pytest.raises(ValueError, match="x/a is in the collection twice"):
        chunk(tmp_path, shards)


def test_a_class_that_is_all_in_quarantine_is_named(tmp_path: Path):
    shard = write_shard(tmp_path / "shard", ["x/a"], lost=["y/b"])
    with pytest.raises(ValueError, match="class y has no video that can be decoded"):
        chunk(tmp_path, [shard])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video,source\nx/a,s\n", "lacks 1 videos, such as x/b"),
        ("x/a,s\nx/b,s\nx/a,t\n", ":3: a second group for x/a"),
        ("x/a;s\n", ":1: 'x/a;s' is not accepted"),
        ("x/a,\n", ":1: 'x/a,' is not accepted"),
    ],
    ids=["a video lacks", "two groups", "not CSV", "empty group"],
)
def test_a_table_of_groups_that_does_not_fit(tmp_path: Path, content: str, message: str):
    groups = tmp_path / "groups.csv"
    groups.write_text(content)
    with pytest.raises(ValueError, match=message):
        chunk(tmp_path, [write_shard(tmp_path / "shard", ["x/a", "x/b"])], groups=groups)


@pytest.mark.parametrize("header", ["", "video,source\n"])
def test_a_table_of_groups_beats_file_names(tmp_path: Path, header: str):
    groups = tmp_path / "groups.csv"
    videos = group_videos(num_groups=4, per_group=2)
    groups.write_text(header + "".join(f'{video},"film, {video[-5]}"\n' for video in videos))
    chunk(tmp_path, [write_shard(tmp_path / "shard", videos)], groups=groups)
    groups = pd.read_parquet(tmp_path / "chunk/videos.parquet")["group"]
    assert set(groups) == {"film, 0_a", "film, 1_a", "film, 0_b", "film, 1_b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("x", "train"), ("x", "val"), ("y", "test")], r"\(y\)"),
        ([("x", "train"), ("x", "test")], "the val split has no clips"),
        ([("x", "train"), ("x", "val")], "the test split has no clips"),
    ],
)
def test_what_cannot_be_trained_is_said_before(rows: list[tuple[str, str]], message: str):
    with pytest.raises(ValueError, match=message):
        check_trainable(pd.DataFrame(rows, columns=["class_name", "split"]))
