"""Collections from folders, archives and HMDB-51's own layout, whole and broken."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from pipeline_lib.artifacts import file_sha256
from pipeline_lib.datasets import hmdb51, ucf101
from pipeline_lib.datasets.data_set import DataSet
from pipeline_lib.errors import UserError
from pipeline_lib.fetch.collection import fetch_collection, list_videos, videos_root
from pipeline_lib.fetch.transfer import Address, PermanentError
from pipeline_lib.params import FetchParams

VIDEOS = ["walk/-odd (1) [x].avi", "walk/b.MP4", "wave/#1.webm", "wave/vidéo.avi"]
SPLITS = ["walk_test_split1.txt", "wave_test_split1.txt"]


def write(root: Path, *names: str, content: str | None = None) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name if content is None else content)
    return root


def pack(archive: Path, folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{prefix}{path.relative_to(folder).as_posix()}")
    return archive


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder of two classes, with things in it that are no videos."""
    root = write(tmp_path / "source", *VIDEOS, "walk/notes.txt", "walk/.hidden.avi", ".git/x.avi", "README.md")
    return write(root, *(f"splits/{name}" for name in SPLITS))


@pytest.fixture
def fetch(tmp_path: Path):
    """Return a function that fetches with given parameters into `tmp_path/artifact`, using `tmp_path/partial`."""

    def fetch(**params: object) -> dict[str, int]:
        artifact, partial = tmp_path / "artifact", tmp_path / "partial"
        shutil.rmtree(artifact, ignore_errors=True)
        artifact.mkdir()
        partial.mkdir(exist_ok=True)
        return fetch_collection(FetchParams.model_validate(params), artifact, partial, sha256=file_sha256)

    return fetch


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode) for path in root.rglob("*")}


def test_a_folder_stays_where_it_is_and_untouched(source: Path, tmp_path: Path, fetch):
    boxes = (
        write(tmp_path, "boxes.csv", content="video,time_seconds,x0,y0,x1,y1\nwalk/b.MP4,0.0,0.1,0.1,0.5,0.5\n") / "boxes.csv"
    )
    before = snapshot(source)
    counts = fetch(kind="folder", videos=str(source), splits=str(source / "splits"), boxes=str(boxes))
    assert counts == {"classes": 2, "videos": 4, "split_files": 2, "size_bytes": sum(len(name.encode()) for name in VIDEOS)}
    assert snapshot(source) == before
    artifact = tmp_path / "artifact"
    assert {path.name for path in artifact.iterdir()} == {"splits", "boxes.csv", "collection.parquet"}
    assert sorted(path.name for path in (artifact / "splits").iterdir()) == SPLITS
    assert (artifact / "boxes.csv").read_text() == boxes.read_text()
    table = pd.read_parquet(artifact / "collection.parquet")
    assert list(table.columns) == ["video", "class_name", "size_bytes", "sha256"]
    assert list(table["video"]) == VIDEOS
    assert list(table["class_name"]) == ["walk", "walk", "wave", "wave"]
    assert table["sha256"][3] == file_sha256(source / "wave" / "vidéo.avi")


@pytest.mark.parametrize("prefix", ["", "hmdb51_org/", "a/b/"])
def test_an_archive_ends_as_class_folders_wherever_it_has_them(source: Path, tmp_path: Path, fetch, prefix: str):
    shutil.rmtree(source / ".git")
    splits = pack(tmp_path / "s.zip", source / "splits", "testTrainMulti_7030_splits/")
    shutil.rmtree(source / "splits")
    archive = pack(tmp_path / "v.zip", source, prefix)
    counts = fetch(kind="archive", videos=["/nowhere/v.zip", str(archive)], splits=str(splits))
    root = videos_root(FetchParams(kind="archive", videos=str(archive)), tmp_path / "artifact")
    assert [video.video for video in list_videos(root)] == VIDEOS
    assert counts["videos"] == 4
    assert counts["split_files"] == 2
    assert sorted(path.name for path in (tmp_path / "artifact" / "splits").iterdir()) == SPLITS
    assert archive.exists()


def test_fight_surv_is_read_with_its_headerless_sources(shared: Path, tmp_path: Path, fetch):
    root = shared / "data" / "fight_surv"
    counts = fetch(kind="folder", videos=str(root / "videos"), splits=str(root / "splits"), groups=str(root / "sources.csv"))
    assert (counts["classes"], counts["videos"], counts["split_files"]) == (2, 127, 2)
    sources = pd.read_csv(tmp_path / "artifact" / "groups.csv")
    assert list(sources.columns) == ["video", "group"]
    assert set(sources["video"]) == {video.video for video in list_videos(root / "videos")}


def test_a_part_of_ucf101_is_read_with_its_own_lists(shared: Path, tmp_path: Path, fetch):
    root = shared / "data" / "ucf101"
    counts = fetch(kind="folder", videos=str(root / "videos"), splits=str(root / "ucfTrainTestlist"))
    assert (counts["classes"], counts["videos"], counts["split_files"]) == (5, 193, 7)
    copied = {path.name: path.read_bytes() for path in (tmp_path / "artifact" / "splits").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in (root / "ucfTrainTestlist").iterdir()}


def test_lists_in_two_formats_are_not_chosen_from(shared: Path, fetch):
    root = shared / "data" / "ucf101"
    with pytest.raises(ValueError, match=r"^fetch\.splits: .*split files in 2 folders: .* or trainlist01\.txt, \.\.\. is exp"):
        fetch(kind="folder", videos=str(root / "videos"), splits=str(root))


def test_the_lists_of_another_data_set_are_refused(shared: Path, fetch):
    for kind, splits, words in (
        ("ucf101", "hmdb51_splits", r"no split file: one folder of trainlist01\.txt, \.\.\. is expected"),
        ("hmdb51", "ucf101/ucfTrainTestlist", r"no split file: one folder of <class>_test_split1\.txt, \.\.\. is expected"),
        ("hmdb51", "fight_surv/splits", r"HMDB-51 is incomplete: 2 of 51 classes, 127 of 6766 videos, 2 of 153 split files"),
    ):
        with pytest.raises(UserError, match=words):
            fetch(kind=kind, splits=str(shared / "data" / splits))


def test_a_folder_too_high_up_is_met_with_the_right_one(shared: Path):
    with pytest.raises(ValueError, match=r"no video in this class folder .* did you mean fetch\.videos: .*fight_surv/videos$"):
        list_videos(shared / "data" / "fight_surv")


def test_splits_beside_the_classes_are_no_class(source: Path):
    write(source, "ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/classInd.txt")
    assert {video.class_name for video in list_videos(source)} == {"walk", "wave"}


def test_bad_folders_are_named(source: Path, tmp_path: Path):
    for path, words in {
        tmp_path / "none": r"none: no such folder: check the path",
        source / "README.md": r"set fetch\.kind: archive",
        write(tmp_path / "flat", "a.avi"): r"no class folder in it: <folder>/<class>/<video file> is expected",
        write(tmp_path / "two", "walk/a.avi", "wave/b.txt"): r"two/wave: no video in this class folder",
    }.items():
        with pytest.raises(ValueError, match=rf"^fetch\.videos: .*{words}"):
            list_videos(path)
    (source / "empty").mkdir()
    with pytest.raises(ValueError, match=r"source/empty: no video in this class folder"):
        list_videos(source)


def test_a_name_that_is_not_utf8_is_named(source: Path):
    Path(os.fsdecode(os.fsencode(source / "wave") + b"/\x8c.avi")).write_bytes(b"film")
    with pytest.raises(ValueError, match=r"'wave/\\udc8c.avi' is not valid UTF-8: rename it"):
        list_videos(source)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.txt"], "no video in the archive"),
        (["a.avi"], "not in class folders"),
        (["x/walk/a.avi", "wave/b.avi"], r"not in class folders of one folder \(\./, x/\)"),
        (["walk/a.avi", "wave/readme.txt"], "wave: no video in this class folder"),
    ],
)
def test_archives_without_class_folders_are_refused(tmp_path: Path, fetch, names: list[str], words: str):
    archive = pack(tmp_path / "v.zip", write(tmp_path / "made", *names))
    with pytest.raises(ValueError, match=rf"^fetch\.videos: .*{words}"):
        fetch(kind="archive", videos=str(archive))


def test_a_folder_given_as_archive_is_said_so(source: Path, fetch):
    with pytest.raises(ValueError, match=r"fetch\.videos: .* is a folder, not an archive: set fetch\.kind: folder"):
        fetch(kind="archive", videos=str(source))


def test_a_bad_archive_is_one_line_with_key_and_path(source: Path, tmp_path: Path, fetch):
    bad = write(tmp_path, "bad.rar", content="<html>moved</html>") / "bad.rar"
    with pytest.raises(ValueError, match=r"^fetch\.videos: .*bad\.rar \(it is a web page, not an archive\)"):
        fetch(kind="archive", videos=str(bad))
    bad.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"^fetch\.splits: .*bad\.rar: it is not an archive") as caught:
        fetch(kind="folder", videos=str(source), splits=str(bad))
    assert "\n" not in str(caught.value)
    assert bad.exists()


def test_a_damaged_download_is_fetched_anew_by_the_next_run(
    source: Path, tmp_path: Path, fetch, monkeypatch: pytest.MonkeyPatch
):
    downloaded = write(tmp_path, "partial/downloads/x.zip", content="damaged on the way") / "partial/downloads/x.zip"
    monkeypatch.setattr("pipeline_lib.fetch.collection.download", lambda *arguments, **options: downloaded)
    with pytest.raises(ValueError, match="not an archive"):
        fetch(kind="archive", videos="http://example.org/x.zip")
    assert not downloaded.exists()


def test_splits_that_are_none_or_in_two_places_are_refused(source: Path, tmp_path: Path, fetch):
    with pytest.raises(ValueError, match=r"^fetch\.splits: .*no split file: one folder of <class>_test_split1\.txt"):
        fetch(kind="folder", videos=str(source), splits=str(source / "walk"))
    write(source, *(f"more/{name}" for name in SPLITS))
    with pytest.raises(ValueError, match=r"^fetch\.splits: .*split files in 2 folders"):
        fetch(kind="folder", videos=str(source), splits=str(source))
    with pytest.raises(ValueError, match=r"^fetch\.splits: .*no such file"):
        fetch(kind="folder", videos=str(source), splits=str(tmp_path / "none"))


BOXES = "video,time_seconds,x0,y0,x1,y1\n"


@pytest.mark.parametrize(
    ("key", "content", "words"),
    [
        ("boxes", "video,x0\n", r"first line must be video,time_seconds,x0,y0,x1,y1, found video,x0"),
        ("boxes", "", "first line must be"),
        ("boxes", f"{BOXES}a.avi,0,0,0,1,1\n", "row 2: must be class/video and five numbers, found a.avi,0,0,0,1,1"),
        ("boxes", f"{BOXES}walk/a.avi,0,0,0,1\n", "row 2: must be class/video and five numbers"),
        ("boxes", f"{BOXES}walk/a.avi,0,0,0,1,1\nwalk/a.avi,0,0,0,one,1\n", "row 3: 0,0,0,one,1 must be five numbers"),
        ("boxes", f"{BOXES}walk/a.avi,nan,0,0,1,1\n", "row 2: time_seconds = nan: must be 0 or more"),
        ("boxes", f"{BOXES}walk/a.avi,0,10,20,90,80\n", r"row 2: x0,y0,x1,y1 = 10,20,90,80: must be fractions of the frame"),
        ("boxes", f"{BOXES}walk/a.avi,0,0.5,0,0.5,1\n", "x0 below x1 and y0 below y1"),
        ("boxes", f"{BOXES}walk/a.avi,0,nan,0,0.5,1\n", "must be fractions of the frame"),
        ("boxes", f"{BOXES}stroll/a.avi,0,0,0,1,1\n", r"none of its videos is in the collection; .* found stroll/a\.avi"),
        ("groups", "walk/a.avi,one\nwalk/b.avi\n", r"every line must be class/video,group; found walk/b\.avi"),
        ("groups", None, "no such file: check the path"),
    ],
)
def test_bad_tables_are_named(source: Path, tmp_path: Path, fetch, key: str, content: str | None, words: str):
    if content is not None:
        write(tmp_path, "table.csv", content=content)
    with pytest.raises(ValueError, match=rf"^fetch\.{key}: .*table\.csv: .*{words}"):
        fetch(kind="folder", videos=str(source), **{key: str(tmp_path / "table.csv")})


def test_an_address_in_place_of_a_table_is_named_without_its_password(source: Path, fetch):
    with pytest.raises(UserError, match=r"^fetch\.boxes: https://\*\*\*@example\.org/b\.csv: no such file: check the path"):
        fetch(kind="folder", videos=str(source), boxes="https://me:secret@example.org/b.csv")


def test_only_the_first_mistakes_of_a_long_table_are_told(source: Path, tmp_path: Path, fetch):
    write(tmp_path, "table.csv", content=BOXES + "walk/b.MP4,0,0,0,2,2\n" * 2000)
    with pytest.raises(ValueError, match="more like these") as error:
        fetch(kind="folder", videos=str(source), boxes=str(tmp_path / "table.csv"))
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    assert all(line.startswith("fetch.boxes: ") for line in lines)
    assert "row 6" in lines[4]
    assert lines[5].endswith("... and 1995 more like these")


def test_boxes_of_videos_elsewhere_are_a_warning(source: Path, tmp_path: Path, fetch, caplog: pytest.LogCaptureFixture):
    write(tmp_path, "table.csv", content=f"{BOXES}walk/b.MP4,0,0,0,1,1\nwalk/z.avi,0,0,0,1,1\n")
    fetch(kind="folder", videos=str(source), boxes=str(tmp_path / "table.csv"))
    assert "fetch.boxes: 1 of 2 videos are not in the collection: walk/z.avi" in caplog.text


def test_a_table_that_is_not_text_is_named(source: Path, tmp_path: Path, fetch):
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"^fetch\.boxes: .* cannot be read as a CSV file in UTF-8"):
        fetch(kind="folder", videos=str(source), boxes=str(tmp_path / "table.csv"))


@pytest.mark.parametrize(("kind", "data_set"), [("hmdb51", hmdb51.DATA_SET), ("ucf101", ucf101.DATA_SET)])
def test_the_known_addresses_stand_in(tmp_path: Path, fetch, monkeypatch: pytest.MonkeyPatch, kind: str, data_set: DataSet):
    asked: list[Address] = []

    def refuse(address: Address, directory: Path, **options: object) -> Path:
        asked.append(address)
        raise PermanentError("gone")

    def asked_for(**params: object) -> list[Address]:
        asked.clear()
        with pytest.raises(UserError, match=r"^fetch\.splits: could not be downloaded from .* \(gone\)"):
            fetch(kind=kind, **params)
        return asked

    monkeypatch.setattr("pipeline_lib.fetch.collection.download", refuse)
    assert asked_for() == list(data_set.splits)
    assert asked_for(splits=["/a", data_set.splits[0].url]) == [Address("/a"), data_set.splits[0]]
    assert asked_for(splits="/a", splits_sha256="0" * 64) == [Address("/a", "0" * 64)]
