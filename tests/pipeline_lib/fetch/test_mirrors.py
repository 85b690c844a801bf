"""HMDB-51 and UCF-101 from their mirrors, in the layouts that these have, from the addresses to the table of the collection."""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from demo.rar import pack_collection, write_rar
from pipeline_lib.artifacts import file_sha256
from pipeline_lib.datasets import hmdb51, ucf101
from pipeline_lib.errors import UserError
from pipeline_lib.fetch.collection import fetch_collection
from pipeline_lib.fetch.transfer import Address
from pipeline_lib.params import FetchParams

pytestmark = pytest.mark.integration

HOME_PAGE = b"<!doctype html><title>Serre Lab</title>"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4246812958\n"


@dataclass
class Site:
    """A server of files by path; whatever else it is asked for is redirected to its home page."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def address(self, name: str, **known: object) -> Address:
        return Address(f"{self.url}/{name}", **known)  # type: ignore[arg-type]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path[1:])
            content = HOME_PAGE if self.path == "/" else site.files.get(self.path[1:])
            self.send_response(301 if content is None else 200)
            self.send_header("Content-Type", "text/html" if self.path == "/" else "application/octet-stream")
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("Location", "/")
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all 6,766 videos, each of which holds its name, in `videos/`, and the split files in `splits/`."""
    folder = tmp_path_factory.mktemp("hmdb51")
    shutil.copytree(shared / "data" / "hmdb51_splits", folder / "splits")
    for file in sorted((folder / "splits").glob("*_test_split1.txt")):
        class_folder = folder / "videos" / file.name.removesuffix("_test_split1.txt")
        class_folder.mkdir(parents=True)
        for line in file.read_text().splitlines():
            name = line.rsplit(maxsplit=1)[0]
            (class_folder / name).write_text(f"{class_folder.name}/{name}")
    return folder


def pack_zip(folder: Path, top: str = "", without: str | None = None) -> bytes:
    """Return a zip file of all files below a folder, or all but one of them."""
    archive = folder.parent / "packed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != without:
                packed.write(path, f"{top}{path.relative_to(folder).as_posix()}")
    content = archive.read_bytes()
    archive.unlink()
    return content


def zip_of_class_rars(made: Path) -> bytes:
    """As innat's mirror is packed."""
    rars = made / "rars"
    rars.mkdir()
    for folder in (made / "videos").iterdir():
        write_rar(rars / f"{folder.name}.rar", [(f"{folder.name}/{video.name}", video) for video in folder.iterdir()])
    content = pack_zip(rars, "hmdb51_org/")
    shutil.rmtree(rars)
    return content


def rar_of_class_rars(made: Path) -> bytes:
    """As the lab packed it."""
    archive = made / "hmdb51_org.rar"
    pack_collection(made, archive)
    content = archive.read_bytes()
    archive.unlink()
    return content


LAYOUTS: dict[str, Callable[[Path], bytes]] = {
    "innat: a zip of class rars": zip_of_class_rars,
    "MichiganNLP, jili5044: a zip of class folders in one folder": lambda made: pack_zip(made / "videos", "hmdb51_org/"),
    "the lab: a rar of class rars": rar_of_class_rars,
}


@pytest.fixture
def fetch(site: Site, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    """Return a function that fetches HMDB-51 into `tmp_path/artifact`, its videos from the given addresses."""
    site.files["splits.zip"] = pack_zip(made / "splits", "testTrainMulti_7030_splits/")
    splits = (site.address("gone.rar"), site.address("splits.zip"))

    def fetch(*videos: Address) -> dict[str, int]:
        monkeypatch.setattr(hmdb51, "DATA_SET", replace(hmdb51.DATA_SET, videos=videos, splits=splits))
        (tmp_path / "artifact").mkdir()
        params = FetchParams(kind="hmdb51", retries=0)
        return fetch_collection(params, tmp_path / "artifact", tmp_path / "partial", sha256=file_sha256)

    return fetch


def assert_is_whole(counts: dict[str, int], made: Path, folder: Path) -> None:
    """Check that all videos were fetched with the content that was made, and that nothing else is left of them."""
    assert (counts["classes"], counts["videos"], counts["split_files"]) == (51, 6766, 153)
    table = pd.read_parquet(folder / "artifact" / "collection.parquet")
    assert list(table["video"]) == sorted(path.relative_to(made / "videos").as_posix() for path in made.glob("videos/*/*"))
    assert list(table["sha256"]) == [hashlib.sha256(video.encode()).hexdigest() for video in table["video"]]
    assert sorted(path.name for path in (folder / "partial").rglob("*") if path.is_dir()) == ["downloads"]


@pytest.mark.integration
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mirror_s_layout_ends_as_the_same_collection(site: Site, made: Path, fetch, tmp_path: Path, layout: str):
    packed = LAYOUTS[layout](made)
    site.files |= {"pointer.zip": LFS_POINTER, "other.zip": b"PK other", "cut.zip": packed[:-200], "whole": packed}
    digest = hashlib.sha256(packed).hexdigest()
    counts = fetch(
        site.address("gone.rar"),
        site.address("pointer.zip"),
        site.address("other.zip", sha256=digest),
        site.address("cut.zip", size_bytes=len(packed)),
        site.address("whole", sha256=digest, size_bytes=len(packed)),
    )
    assert site.asked == ["gone.rar", "", "splits.zip", "gone.rar", "", "pointer.zip", "other.zip", "cut.zip", "whole"]
    assert_is_whole(counts, made, tmp_path)


@pytest.mark.integration
def test_a_mirror_without_a_digest_must_hold_the_whole_collection(
    site: Site, made: Path, fetch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Here a zip of class folders, with no folder around them."""
    site.files |= {
        "short.zip": pack_zip(made / "videos" / "wave", "hmdb51_org/wave/"),
        "damaged.zip": b"PK\3\4 damaged",
        "empty.zip": pack_zip(made / "splits"),
        "whole.zip": pack_zip(made / "videos"),
    }
    names = ["short.zip", "damaged.zip", "empty.zip", "whole.zip"]
    assert_is_whole(fetch(*(site.address(name) for name in names)), made, tmp_path)
    assert site.asked[-4:] == names
    assert "short.zip: HMDB-51 is incomplete: 51 of 51 classes, 104 of 6766 videos" in caplog.text
    assert "damaged.zip: it is not an archive" in caplog.text
    assert "empty.zip: no video in the archive" in caplog.text
    downloads = {path.name.partition("-")[2] for path in (tmp_path / "partial" / "downloads").iterdir()}
    assert downloads == {"splits.zip", "whole.zip"}


def test_split_files_that_are_not_all_there_are_told_before_videos_are_downloaded(site: Site, made: Path, fetch):
    site.files["splits.zip"] = pack_zip(made / "splits", without="wave_test_split2.txt")
    with pytest.raises(UserError, match=r"HMDB-51 is incomplete: .* 152 of 153 split files"):
        fetch(site.address("whole.zip"))
    assert site.asked == ["gone.rar", "", "splits.zip"]


def test_when_no_mirror_works_one_line_names_each_with_its_reason(site: Site, fetch):
    site.files |= {"pointer.zip": LFS_POINTER, "damaged.zip": b"PK\3\4 damaged"}
    with pytest.raises(UserError) as caught:
        fetch(*(site.address(name) for name in ("gone.rar", "pointer.zip", "damaged.zip")))
    assert str(caught.value) == (
        f"fetch.videos: could not be downloaded from {site.url}/gone.rar (answered with a web page, not an archive); "
        f"{site.url}/pointer.zip (answered with a Git LFS pointer, not an archive); {site.url}/damaged.zip "
        "(it is not an archive (RAR, zip, 7z or tar), or it is truncated: download it again or give another file). "
        "Set fetch.videos to the path of a local copy or another address"
    )


@pytest.fixture(scope="module")
def made_ucf101(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all 13,320 videos, each of which holds its name, in `videos/`, and the lists in `splits/`.

    The folder of the handstand push-ups is spelled as in the archive, which is not as in the lists.
    """
    folder = tmp_path_factory.mktemp("ucf101")
    shutil.copytree(shared / "data" / "ucf101" / "ucfTrainTestlist", folder / "splits")
    for part in ("train", "test"):
        for line in (folder / "splits" / f"{part}list01.txt").read_text().splitlines():
            video = folder / "videos" / line.split()[0].replace("HandStandPushups/", "HandstandPushups/")
            video.parent.mkdir(parents=True, exist_ok=True)
            video.write_text(video.relative_to(folder / "videos").as_posix())
    return folder


def rar_of_nested_folders(made: Path) -> bytes:
    """As UCF-101's centre packed it."""
    archive = made / "UCF101.rar"
    files = sorted(path for path in (made / "videos").rglob("*") if path.is_file())
    write_rar(archive, [(f"UCF-101/{path.parent.name}/{path.name}", path) for path in files])
    content = archive.read_bytes()
    archive.unlink()
    return content


@pytest.fixture
def fetch_ucf101(
    site: Site, made_ucf101: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, int]]:
    """Return a function that fetches UCF-101 into `tmp_path/artifact`, its videos from the given addresses."""
    site.files["lists.zip"] = pack_zip(made_ucf101 / "splits", "ucfTrainTestlist/")
    site.files["other.zip"] = pack_zip(made_ucf101 / "splits", without="testlist03.txt")
    splits = (site.address("gone.zip"), site.address("other.zip"), site.address("lists.zip"))

    def fetch(*videos: Address) -> dict[str, int]:
        monkeypatch.setattr(ucf101, "DATA_SET", replace(ucf101.DATA_SET, videos=videos, splits=splits))
        (tmp_path / "artifact").mkdir()
        params = FetchParams(kind="ucf101", retries=0)
        return fetch_collection(params, tmp_path / "artifact", tmp_path / "partial", sha256=file_sha256)

    return fetch


@pytest.mark.slow
def test_ucf101_from_the_first_mirror_that_holds_all_of_it(
    site: Site, made_ucf101: Path, fetch_ucf101, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    whole = rar_of_nested_folders(made_ucf101)
    site.files |= {"pointer.zip": LFS_POINTER, "whole.rar": whole}
    site.files["part.zip"] = pack_zip(made_ucf101 / "videos" / "Archery", "UCF-101/Archery/")
    names = ["gone.rar", "pointer.zip", "part.zip"]
    counts = fetch_ucf101(
        *(site.address(name) for name in names), site.address("whole.rar", sha256=hashlib.sha256(whole).hexdigest())
    )
    assert [name for name in site.asked if name] == ["gone.zip", "other.zip", "lists.zip", *names, "whole.rar"]
    assert (counts["classes"], counts["videos"], counts["split_files"]) == (101, 13320, 7)
    assert "other.zip: UCF-101 is incomplete: 101 of 101 classes, 13320 of 13320 videos, 6 of 7 split files" in caplog.text
    assert "part.zip: UCF-101 is incomplete: 101 of 101 classes, 145 of 13320 videos, 7 of 7 split files" in caplog.text
    table = pd.read_parquet(tmp_path / "artifact" / "collection.parquet")
    assert list(table["video"]) == sorted(
        path.relative_to(made_ucf101 / "videos").as_posix() for path in made_ucf101.glob("videos/*/*")
    )
    assert "HandstandPushups/v_HandStandPushups_g01_c01.avi" in set(table["video"])
    assert list(table["sha256"]) == [hashlib.sha256(video.encode()).hexdigest() for video in table["video"]]
