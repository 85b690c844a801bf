"""Archives of every kind, sound and hostile: unpacked whole inside their folder, or refused with nothing left behind."""

from __future__ import annotations

import bz2
import io
import os
import shutil
import struct
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.rar import write_rar
from pipeline_lib.fetch import archives, seven_zip
from pipeline_lib.fetch.archives import ArchiveError, DamagedArchiveError, Limits, unpack

MINUTE = Limits(seconds=60)
REAL_REFUSED = {
    "rar202-comment-psw.rar": "encrypted",
    "rar3-comment-hpsw.rar": "encrypted",
    "rar3-comment-psw.rar": "encrypted",
    "rar3-old.r00": "not the first volume",
    "rar3-old.r01": "not the first volume",
    "rar3-symlink-unix.rar": "link that leaves the folder",
    "rar3-vols.part2.rar": "not the first volume",
    "rar3-vols.part3.rar": "not the first volume",
    "rar5-evil-symlink-traversal.rar": "'up' is a link to '..', outside",
    "rar5-hpsw.rar": "encrypted",
    "rar5-psw-blake.rar": "encrypted",
    "rar5-psw.rar": "encrypted",
    "rar5-symlink-unix.rar": "'random_link' is a link to '../random123', outside",
    "rar5-symlink-win.rar": "'links/bad_link' is a link to '../../missing', outside",
    "rar5-vols.part2.rar": "not the first volume",
    "rar5-vols.part3.rar": "not the first volume",
}
"""The real archives that must be refused, and why; all others are unpacked."""


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Path]:
    """Yield where to unpack to; afterwards nothing may lie beside it."""
    inside = tmp_path / "jail"
    inside.mkdir()
    yield inside / "videos"
    assert {path.name for path in inside.iterdir()} <= {"videos"}


def pack_zip(path: Path, members: dict[str, bytes], mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def pack_tar(path: Path, *members: tuple[str, bytes, str], mode: str = "w") -> Path:
    """Write (name, type, link target) members; a regular file holds four bytes."""
    with tarfile.open(path, mode) as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"film"))
    return path


def seven_zip_pack(archive: Path, folder: Path, *options: str) -> Path:
    subprocess.run([seven_zip.seven_zip_path(), "a", "-bso0", "-bsp0", *options, str(archive), "."], cwd=folder, check=True)
    return archive


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(archive: Path, destination: Path, limits: Limits = MINUTE) -> str:
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, destination, limits)
    message = str(caught.value)
    assert "\n" not in message
    assert archive.name in message
    assert not destination.exists()
    return message


def test_every_real_archive_is_unpacked_or_refused_with_one_line(shared: Path, tmp_path: Path):
    root = shared / "data" / "rar"
    real = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in (".exp", ".md")]
    real = [path for path in real if path.parent.name != "sources"]
    refused = {}
    for archive in real:
        destination = tmp_path / "jail" / "videos"
        started = time.monotonic()
        try:
            assert unpack(archive, destination, Limits(seconds=30)).num_files == len(files_in(destination))
            shutil.rmtree(destination)
        except ArchiveError as error:
            refused[archive.name] = str(error)
        assert time.monotonic() - started < 30
        assert [path.name for path in tmp_path.rglob("*")] == ["jail"], archive.name
    assert len(real) == 79
    assert refused.keys() == REAL_REFUSED.keys()
    for name, message in refused.items():
        assert REAL_REFUSED[name] in message
        assert message.startswith(name)
        assert "\n" not in message


def test_content_links_and_names_come_out_right(shared: Path, tmp_path: Path):
    root = shared / "data" / "rar" / "rarfile_tests"
    unpack(root / "rar5-subdirs.rar", tmp_path / "subdirs")
    assert set(files_in(tmp_path / "subdirs")) >= {"sub/with space/long fn.txt", "sub/üȵĩöḋè/file.txt"}
    unpack(root / "rar5-hlink.rar", tmp_path / "hlink")
    assert len(set(files_in(tmp_path / "hlink").values())) == 1
    unpack(root / "rar3-vols.part1.rar", tmp_path / "vols")
    assert {name: len(content) for name, content in files_in(tmp_path / "vols").items()} == {
        "vols/bigfile.txt": 205000,
        "vols/smallfile.txt": 2050,
    }


@pytest.mark.parametrize("suffix", ["zip", "7z", "tar", "tar.gz"])
def test_every_format_and_odd_name_is_unpacked(tmp_path: Path, destination: Path, suffix: str):
    names = ["-_FREE_HUGS_!.avi", "#1 (a) [b] & c;~@+.avi", "@list.avi", "vidéo 日本.avi", " spaced .avi", "a*b?.avi"]
    source = tmp_path / "source"
    for name in names:
        (source / "wave").mkdir(parents=True, exist_ok=True)
        (source / "wave" / name).write_bytes(name.encode())
    if suffix == "tar.gz":
        with tarfile.open(tmp_path / "-odd [x] *.tar.gz", "w:gz") as archive:
            archive.add(source, ".")
    else:
        seven_zip_pack(tmp_path / f"-odd [x] *.{suffix}", source)
    unpacked = unpack(tmp_path / f"-odd [x] *.{suffix}", destination)
    assert files_in(destination) == {f"wave/{name}": name.encode() for name in names}
    assert unpacked.num_files == len(names)
    assert unpacked.size_bytes == sum(len(name.encode()) for name in names)


def test_archives_within_archives_are_unpacked_where_they_lie(tmp_path: Path, destination: Path):
    for name in ("wave", "walk"):
        pack_zip(tmp_path / f"{name}.zip", {f"{name}/{name}_1.avi": b"film", f"{name}/same.avi": b"same"})
    inner = {f"hmdb51_org/{name}.zip": (tmp_path / f"{name}.zip").read_bytes() for name in ("wave", "walk")}
    # a mirror holds the class folders beside their archives, and macOS's shadows
    outer = pack_zip(tmp_path / "o.zip", inner | {"hmdb51_org/wave/same.avi": b"same", "__MACOSX/hmdb51_org/._wave.zip": b"x"})
    unpack(outer, destination)
    assert set(files_in(destination)) == {
        "hmdb51_org/wave/wave_1.avi",
        "hmdb51_org/wave/same.avi",
        "hmdb51_org/walk/walk_1.avi",
        "hmdb51_org/walk/same.avi",
        "__MACOSX/hmdb51_org/._wave.zip",
    }


def test_inner_volumes_are_unpacked_once_and_removed(shared: Path, tmp_path: Path, destination: Path):
    volumes = sorted((shared / "data" / "rar" / "rarfile_tests").glob("rar5-vols.part*.rar"))
    outer = pack_zip(tmp_path / "o.zip", {path.name: path.read_bytes() for path in volumes} | {"rar5-vols.txt": b"kept"})
    unpack(outer, destination)
    assert set(files_in(destination)) == {"vols/bigfile.txt", "vols/smallfile.txt", "rar5-vols.txt"}


def test_an_inner_archive_must_not_change_what_is_there(tmp_path: Path, destination: Path):
    inner = pack_zip(tmp_path / "wave.zip", {"wave/a.avi": b"one"}).read_bytes()
    outer = pack_zip(tmp_path / "o.zip", {"wave.zip": inner, "wave/a.avi": b"two"})
    assert "o.zip: wave.zip: a different file 'a.avi' exists already" in refusal(outer, destination)


def test_nesting_has_an_end(tmp_path: Path, destination: Path):
    archive = pack_zip(tmp_path / "0.zip", {"a.avi": b"film"})
    for depth in range(1, 6):
        archive = pack_zip(tmp_path / f"{depth}.zip", {f"{depth - 1}.zip": archive.read_bytes()})
    assert "nested more than 3 deep" in refusal(archive, destination)


@pytest.mark.parametrize(
    "name",
    ["/etc/har-slip", "../har-slip", "a/../../har-slip", "..\\har-slip", "a\\..\\..\\x", "C:\\har", "c:/har", "\\\\host\\har"],
)
@pytest.mark.parametrize("kind", ["rar", "zip", "tar", "inner"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, destination: Path, name: str, kind: str):
    archive = tmp_path / f"slip.{'zip' if kind == 'inner' else kind}"
    if kind == "rar":
        (tmp_path / "film").write_bytes(b"evil")
        write_rar(archive, [("good.avi", tmp_path / "film"), (name, tmp_path / "film")])
    elif kind == "tar":
        pack_tar(archive, (name, tarfile.REGTYPE, ""))
    else:
        pack_zip(archive, {"good.avi": b"film", name: b"evil"})
    if kind == "inner":
        archive = pack_zip(tmp_path / "outer.zip", {"slip.zip": archive.read_bytes()})
    assert "outside the folder" in refusal(archive, destination)
    assert not list(tmp_path.rglob("har-slip"))


@pytest.mark.parametrize(("target", "through"), [("/etc", False), ("../..", False), ("inside", True), ("/etc", True)])
def test_links_that_leave_or_are_written_through_are_refused(tmp_path: Path, destination: Path, target: str, through: bool):
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, target)
        archive.writestr("link/evil.avi" if through else "good.avi", b"film")
    assert "link" in refusal(tmp_path / "link.zip", destination)
    kind = ("link/evil.avi", tarfile.REGTYPE, "") if through else ("good.avi", tarfile.REGTYPE, "")
    assert "link" in refusal(pack_tar(tmp_path / "link.tar", ("link", tarfile.SYMTYPE, target), kind), destination)


def test_hard_links_to_the_outside_are_refused(tmp_path: Path, destination: Path):
    archive = pack_tar(tmp_path / "hard.tar", ("hard", tarfile.LNKTYPE, "/etc/passwd"))
    assert "'hard' is a link to '/etc/passwd', outside" in refusal(archive, destination)
    members = (("l", tarfile.SYMTYPE, "d"), ("d/x", tarfile.REGTYPE, ""), ("hard", tarfile.LNKTYPE, "l/x"))
    assert "through a link" in refusal(pack_tar(tmp_path / "through.tar", *members), destination)


def test_links_inside_are_kept(tmp_path: Path, destination: Path):
    unpack(pack_tar(tmp_path / "in.tar", ("a/x.avi", tarfile.REGTYPE, ""), ("a/y.avi", tarfile.SYMTYPE, "x.avi")), destination)
    assert (destination / "a" / "y.avi").is_symlink()
    assert files_in(destination) == {"a/x.avi": b"film", "a/y.avi": b"film"}


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_and_pipes_are_refused(tmp_path: Path, destination: Path, kind: bytes):
    assert "device or pipe" in refusal(pack_tar(tmp_path / "dev.tar", ("odd", kind, "")), destination)


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path, destination: Path):
    archive = pack_tar(tmp_path / "twice.tar", ("a.avi", tarfile.REGTYPE, ""), ("./a.avi", tarfile.REGTYPE, ""))
    assert "twice" in refusal(archive, destination)


def test_too_many_members_and_too_many_bytes_are_refused_before_unpacking(tmp_path: Path, destination: Path):
    archive = pack_zip(tmp_path / "many.zip", {f"{number}.avi": bytes(1000) for number in range(100)})
    assert "raise fetch.max_members" in refusal(archive, destination, Limits(max_members=99))
    assert "raise fetch.max_unpacked_bytes" in refusal(archive, destination, Limits(max_bytes=99_999))
    unpack(archive, destination, Limits(max_members=100, max_bytes=100_000))


def test_limits_are_for_the_sum_over_nesting(tmp_path: Path, destination: Path):
    inner = {f"{n}.zip": pack_zip(tmp_path / f"{n}.zip", {f"{n}.avi": bytes(50_000)}).read_bytes() for n in range(4)}
    outer = pack_zip(tmp_path / "outer.zip", inner)
    assert "outer.zip: 3.zip: it unpacks to more bytes" in refusal(outer, destination, Limits(max_bytes=160_000))
    assert "outer.zip: 2.zip: it has more members" in refusal(outer, destination, Limits(max_members=6))
    assert unpack(outer, destination, Limits(max_members=8, max_bytes=202_000)).num_files == 4


def test_a_failure_stops_the_extractions_beside_it(tmp_path: Path, destination: Path, monkeypatch: pytest.MonkeyPatch):
    inner = {f"{n}.zip": pack_zip(tmp_path / f"{n}.zip", {f"{n}.avi": b"film"}).read_bytes() for n in range(2)}
    outer = pack_zip(tmp_path / "outer.zip", inner)
    extract = archives.extract

    def extract_or_not(archive: Path, directory: Path, label: str, deadline: float, fits: Callable[[int], bool]) -> None:
        if archive.name == "0.zip":
            raise KeyboardInterrupt
        if archive.name == "1.zip":
            while fits(0):
                time.sleep(0.01)
        else:
            extract(archive, directory, label, deadline, fits)

    monkeypatch.setattr(archives, "num_cores", lambda: 2)
    monkeypatch.setattr(archives, "extract", extract_or_not)
    with pytest.raises(KeyboardInterrupt):
        unpack(outer, destination)


def test_a_bomb_that_does_not_tell_its_size_is_stopped(tmp_path: Path, destination: Path):
    (tmp_path / "bomb.bz2").write_bytes(bz2.compress(bytes(80_000_000), 9))
    assert "max_unpacked_bytes" in refusal(tmp_path / "bomb.bz2", destination, Limits(max_bytes=1_000_000))


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path, destination: Path):
    archive = pack_zip(tmp_path / "liar.zip", {"a.avi": bytes(50_000_000)})
    lie = archive.read_bytes().replace(struct.pack("<I", 50_000_000), struct.pack("<I", 10))
    archive.write_bytes(lie)
    assert "liar.zip" in refusal(archive, destination, Limits(max_bytes=1_000_000))


def test_a_full_disk_is_told_before_unpacking(tmp_path: Path, destination: Path, monkeypatch: pytest.MonkeyPatch):
    archive = pack_zip(tmp_path / "big.zip", {"a.avi": bytes(5000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 4999))  # type: ignore[attr-defined]
    assert "needs 5000 bytes of disk, but 4999 are free" in refusal(archive, destination)


def test_encrypted_archives_are_refused_without_asking(tmp_path: Path, destination: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.avi").write_bytes(b"film" * 100)
    for name, options in {"names.7z": ("-psecret", "-mhe=on"), "content.7z": ("-p-",), "content.zip": ("-p-",)}.items():
        assert "encrypted" in refusal(seven_zip_pack(tmp_path / name, tmp_path / "source", *options), destination)


@pytest.mark.parametrize("suffix", ["zip", "7z", "tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_archives_are_refused(tmp_path: Path, destination: Path, suffix: str, share: float):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.avi").write_bytes(os.urandom(100_000))
    (source / "b.avi").write_bytes(os.urandom(100_000))
    archive = tmp_path / f"cut.{suffix}"
    if suffix == "tar.gz":
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(source, ".")
    else:
        seven_zip_pack(archive, source)
    content = archive.read_bytes()
    # a tar ends in padding, which may be missing
    archive.write_bytes(content[: int(min(len(content), 201_000) * share)])
    assert refusal(archive, destination)
    with pytest.raises(DamagedArchiveError):
        unpack(archive, destination)


def test_truncated_and_damaged_rar_is_refused(shared: Path, tmp_path: Path, destination: Path):
    content = (shared / "data" / "rar" / "rarfile_tests" / "rar5-crc.rar").read_bytes()
    for name, damaged in {"cut.rar": content[:1500], "flipped.rar": content[:1000] + b"!!!!" + content[1004:]}.items():
        (tmp_path / name).write_bytes(damaged)
        assert refusal(tmp_path / name, destination)


def test_a_missing_volume_is_named_as_such(shared: Path, tmp_path: Path, destination: Path):
    for number in (1, 2):
        shutil.copy(shared / "data" / "rar" / "rarfile_tests" / f"rar3-vols.part{number}.rar", tmp_path)
    assert "a volume is missing" in refusal(tmp_path / "rar3-vols.part1.rar", destination)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an archive"),
        (b"hello\n" * 1000, "not an archive"),
        (b"\n<!DOCTYPE HTML><title>Serre Lab</title>", r"web page saved under an archive's name"),
        (Path("/bin/sh").read_bytes(), "not an archive"),
    ],
    ids=["empty", "text", "html", "program"],
)
def test_what_is_not_an_archive_is_refused(tmp_path: Path, destination: Path, content: bytes, words: str):
    (tmp_path / "hmdb51_org.rar").write_bytes(content)
    assert words in refusal(tmp_path / "hmdb51_org.rar", destination)


def test_a_film_is_not_an_archive(shared: Path, destination: Path):
    film = next((shared / "data" / "decoder_samples").glob("*.mp4"))
    assert "not an archive" in refusal(film, destination)


def test_a_missing_archive_is_named(tmp_path: Path, destination: Path):
    assert "there is no such archive file" in refusal(tmp_path / "none.rar", destination)


def test_unpacking_takes_no_longer_than_allowed(tmp_path: Path, destination: Path):
    archive = pack_zip(tmp_path / "slow.zip", {"a.avi": b"film"})
    assert "took too long" in refusal(archive, destination, Limits(seconds=0))


def test_a_hanging_program_is_stopped(tmp_path: Path, destination: Path, monkeypatch: pytest.MonkeyPatch):
    hanging = tmp_path / "7zz"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(seven_zip, "seven_zip_path", lambda: str(hanging))
    archive = pack_zip(tmp_path / "slow.zip", {"a.avi": b"film"})
    started, num_threads = time.monotonic(), threading.active_count()
    assert "took too long" in refusal(archive, destination, Limits(seconds=0.3))
    assert time.monotonic() - started < 10
    assert threading.active_count() <= num_threads


def test_unwritable_folders_of_an_archive_are_no_trap(tmp_path: Path, destination: Path):
    with tarfile.open(tmp_path / "locked.tar", "w") as archive:
        folder = tarfile.TarInfo("wave")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o000
        film = tarfile.TarInfo("wave/a.avi")
        film.size, film.mode = 4, 0o4000
        archive.addfile(folder)
        archive.addfile(film, io.BytesIO(b"film"))
    unpack(tmp_path / "locked.tar", destination)
    assert (destination / "wave").stat().st_mode & 0o7777 == 0o755
    assert (destination / "wave" / "a.avi").stat().st_mode & 0o7777 == 0o644


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path: Path, destination: Path):
    left = destination.with_name(".videos.unpacking-old") / "0"
    left.mkdir(parents=True)
    (left / "old.avi").write_bytes(b"old")
    unpack(pack_zip(tmp_path / "a.zip", {"new.avi": b"film"}), destination)
    assert files_in(destination) == {"new.avi": b"film"}
