"""Members of an archive, and checks that they are safe to unpack."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline_lib.errors import UnusableError, UserError

NOT_FIRST_VOLUME = "it is not the first volume of its set: name the first one"


class ArchiveError(UserError):
    """An archive cannot be unpacked, or is not safe to unpack."""


class DamagedArchiveError(ArchiveError, UnusableError):
    """The archive is damaged; another copy may not be."""

    def __init__(self, label: str, what: str) -> None:
        super().__init__(f"{label}: {what}: download it again or give another file")


@dataclass(frozen=True)
class Member:
    """One entry in an archive's listing."""

    name: str
    kind: Literal["file", "folder", "symlink", "hardlink", "special"]
    size_bytes: int
    target: str
    """Target of a link; empty if the format stores it in the packed data (zip, RAR 3)."""
    encrypted: bool
    continued: bool
    """Whether the member starts in an earlier volume."""


def parse_member(fields: Mapping[str, str], archive: Path) -> Member:
    """Parse one block of `7zz l -slt`; the name defaults to the archive's stem (.bz2 stores none)."""
    size = fields.get("Size", "")
    return Member(
        name=fields.get("Path") or archive.stem,
        kind=_kind(fields),
        size_bytes=int(size) if size.isdecimal() else 0,
        target=fields.get("Symbolic Link") or fields.get("Hard Link") or fields.get("Copy Link") or "",
        encrypted=fields.get("Encrypted") == "+",
        continued=fields.get("Split Before") == "+",
    )


def _kind(fields: Mapping[str, str]) -> Literal["file", "folder", "symlink", "hardlink", "special"]:
    """Parse `Attributes = AL lrwxrwxrwx` (Windows letters, then a Unix mode) or `Mode = lrwxrwxrwx` (tar)."""
    attributes = fields.get("Attributes") or fields.get("Mode") or ""
    words = attributes.split()
    mode = words[-1] if words and re.fullmatch(r"[-a-zA-Z][-a-zA-Z]{9}", words[-1]) else ""
    letters = words[0] if words and not attributes.startswith(" ") and words[0] != mode else ""
    if mode[:1] == "l" or "L" in letters or fields.get("Symbolic Link"):
        return "symlink"
    if mode and mode[0] not in "-d":
        return "special"
    if fields.get("Hard Link") or fields.get("Copy Link"):
        return "hardlink"
    return "folder" if mode[:1] == "d" or "D" in letters or fields.get("Folder") == "+" else "file"


def check_safe(members: Iterable[Member], label: str) -> None:
    """Raise `ArchiveError` if a member is encrypted, a special file, a duplicate, or would be written outside the folder."""
    links: set[str] = set()
    names: set[str] = set()
    for member in members:
        name, shown = _plain(member.name), show(member.name)
        if member.continued:
            raise ArchiveError(f"{label}: {NOT_FIRST_VOLUME}")
        if member.encrypted:
            raise ArchiveError(f"{label}: {shown} is encrypted: decrypt it and give the plain archive")
        if member.kind == "special":
            raise ArchiveError(f"{label}: {shown} is a device or pipe: such archives are not unpacked")
        if _is_outside(member.name):
            raise ArchiveError(f"{label}: {shown} would be written outside the folder: such archives are not unpacked")
        if member.kind in ("symlink", "hardlink") and member.target and _links_outside(member):
            raise ArchiveError(f"{label}: {shown} is a link to {show(member.target)}, outside the folder: remove the link")
        if member.kind != "folder" and name in names:
            raise ArchiveError(f"{label}: it holds {shown} twice: pack it again")
        names.add(name)
        if member.kind == "symlink":
            links.add(name)
    for name in names | {_plain(member.target) for member in members if member.kind == "hardlink"}:
        if any(parent.as_posix() in links for parent in PurePosixPath(name).parents):
            raise ArchiveError(f"{label}: {show(name)} would be written through a link: such archives are not unpacked")


def _plain(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _is_outside(name: str) -> bool:
    """Return whether a name is absolute, has a drive letter or contains `..`, on any system."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or bool(re.match(r"[A-Za-z]:", plain)) or ".." in plain.split("/")


def _links_outside(member: Member) -> bool:
    """Return whether a link's target is outside. It is relative to the link's folder, or to the root for hard links."""
    target = member.target.replace("\\", "/")
    if target.startswith("/") or re.match(r"[A-Za-z]:", target):
        return True
    start = PurePosixPath(_plain(member.name)).parent if member.kind == "symlink" else PurePosixPath()
    return os.path.normpath(start / target).split("/")[0] == ".."


def show(name: str) -> str:
    """Return a member's name in printable form, shortened for an error message."""
    shown = "".join(character if character.isprintable() else "?" for character in name)
    return repr(shown if len(shown) <= 120 else f"{shown[:117]}...")
