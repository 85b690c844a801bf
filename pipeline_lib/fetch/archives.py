"""Archives, also nested ones, unpacked within limits: whole and inside one folder, or not at all."""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.fetch.members import NOT_FIRST_VOLUME, ArchiveError, DamagedArchiveError, Member, refuse_harmful, show
from pipeline_lib.fetch.seven_zip import extract, list_members, too_large

__all__ = ["ArchiveError", "DamagedArchiveError", "Limits", "Unpacked", "unpack"]

logger = logging.getLogger(__name__)

MAX_DEPTH = 3
"""Archives within archives within an archive; HMDB-51 has two levels, a .tar.gz counts as two."""
INNER_SUFFIXES = (".rar", ".zip", ".7z", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
LATER_VOLUME = re.compile(r"\.part0*(?!0|1\.)\d+\.rar$|\.[r-z]\d\d$", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """How much an archive may ask for, everything nested in it included."""

    seconds: float = 3600.0
    max_members: int = 200_000
    max_bytes: int = 200 * 1024**3


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive."""

    num_files: int
    size_bytes: int


def unpack(archive: Path, destination: Path, limits: Limits = Limits(), label: str | None = None) -> Unpacked:
    """Unpack an archive (RAR 1.5 to 5, zip, 7z, tar, self-extracting; of several volumes, the first) and all within it.

    Archives inside are unpacked where they lie and removed. Whatever happens, nothing is written outside `destination`
    and one hidden folder beside it, and after a failure neither is left.

    Raises:
        ArchiveError: one line: the archive (as `label`, if given), what is wrong with it, the mend.
    """
    label = label or archive.name
    assert not destination.exists(), f"{destination} is in the way"
    if not archive.is_file():
        raise ArchiveError(f"{label}: there is no such archive file: check the path")
    if LATER_VOLUME.search(archive.name):
        raise ArchiveError(f"{label}: {NOT_FIRST_VOLUME}")
    staging = _new_staging(destination.absolute())
    try:
        folder = _Unpacking(staging, limits).run(archive, label)
        files = [path for path in walk(folder) if not path.is_dir() or path.is_symlink()]
        unpacked = Unpacked(len(files), sum(path.lstat().st_size for path in files))
        folder.replace(destination)
    finally:
        remove_tree(staging)
    logger.info("%s: unpacked %d files, %d bytes", archive, unpacked.num_files, unpacked.size_bytes)
    return unpacked


def _new_staging(destination: Path) -> Path:
    """Return a new hidden folder beside the destination, and delete those of killed runs.

    Each run has its own: 7-Zip may outlive a killed run for a while, and must not write into what the next one makes.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}.unpacking-"
    for left in [path for path in destination.parent.iterdir() if path.name.startswith(prefix)]:
        with contextlib.suppress(OSError):
            remove_tree(left)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))


class _Unpacking:
    """One run over an archive and what is nested in it, with what is left of the limits."""

    def __init__(self, staging: Path, limits: Limits) -> None:
        self.staging = staging
        self.deadline = time.monotonic() + limits.seconds
        self.members_left = limits.max_members
        self.bytes_left = limits.max_bytes
        self.num_folders = 0

    def run(self, archive: Path, label: str, depth: int = 0) -> Path:
        """Return a new folder with everything in the archive."""
        if depth > MAX_DEPTH:
            raise ArchiveError(f"{label}: archives are nested more than {MAX_DEPTH} deep: unpack it by hand")
        members = self._list(archive, label)
        folder = self.staging / str(self.num_folders)
        self.num_folders += 1
        folder.mkdir()
        extract(archive, folder, label, self.deadline, self.bytes_left)
        self._verify(folder, label, members)
        for inner in [path for path in walk(folder) if _is_inner(path)]:
            self._open_inner(inner, f"{label}: {inner.relative_to(folder).as_posix()}", depth)
        return folder

    def _list(self, archive: Path, label: str) -> list[Member]:
        """Return the members, all of them harmless and within the limits."""
        members = []
        listed_bytes = 0
        with contextlib.closing(list_members(archive, label, self.deadline)) as listing:
            for member in listing:
                members.append(member)
                listed_bytes += member.size_bytes
                if len(members) > self.members_left:
                    raise ArchiveError(f"{label}: it holds more members than allowed: raise fetch.max_members if that is right")
                if listed_bytes > self.bytes_left:
                    raise too_large(label)
        self.members_left -= len(members)
        refuse_harmful(members, label)
        free_bytes = shutil.disk_usage(self.staging).free
        if listed_bytes > free_bytes:
            raise ArchiveError(
                f"{label}: needs {listed_bytes} bytes of disk, {free_bytes} are free: make room or move the workspace"
            )
        return members

    def _verify(self, folder: Path, label: str, members: list[Member]) -> None:
        """Check on disk what the listing promised, and give every file plain permissions."""
        num_files = 0
        for path in walk(folder):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                _refuse_leaving_link(path, folder, label)
            elif stat.S_ISREG(mode):
                path.chmod(0o644)
                self.bytes_left -= path.lstat().st_size
            elif not stat.S_ISDIR(mode):
                raise ArchiveError(f"{label}: {show(path.name)} is a device or pipe: such archives are not unpacked")
            num_files += not stat.S_ISDIR(mode)
        listed = sum(member.kind != "folder" for member in members)
        if num_files != listed:
            raise DamagedArchiveError(label, f"it lists {listed} files, {num_files} came out")
        if self.bytes_left < 0:
            raise too_large(label)

    def _open_inner(self, inner: Path, label: str, depth: int) -> None:
        """Replace an archive by what it holds."""
        content = self.run(inner, label, depth + 1)
        for volume in (inner, *_later_volumes(inner)):
            volume.unlink()
        _merge(content, inner.parent, label)


def _refuse_leaving_link(path: Path, folder: Path, label: str) -> None:
    inside = path.resolve().is_relative_to(folder.resolve()) and not path.readlink().is_absolute()
    if not inside:
        raise ArchiveError(f"{label}: {show(path.name)} is a link that leaves the folder: remove the link")


def _is_inner(path: Path) -> bool:
    """Return whether a file is an archive to unpack in its turn, by its name; macOS's `._` shadows are not."""
    name = path.name.lower()
    is_archive = name.endswith(INNER_SUFFIXES) and not name.startswith(".") and not LATER_VOLUME.search(name)
    return is_archive and path.is_file() and not path.is_symlink()


def _later_volumes(first: Path) -> list[Path]:
    """Return the files that go on where the first volume (`x.rar`, `x.part1.rar`) ends."""
    stem = re.sub(r"(\.part0*1)?\.rar$", "", first.name, flags=re.IGNORECASE)
    siblings = (path for path in first.parent.iterdir() if path.name.startswith(f"{stem}."))
    return [path for path in siblings if LATER_VOLUME.fullmatch(path.name[len(stem) :])]


def _merge(source: Path, target: Path, label: str) -> None:
    """Move everything from one folder into another; a file that is in both must be the same."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if not os.path.lexists(place):
            path.replace(place)
        elif path.is_dir() and place.is_dir() and not path.is_symlink() and not place.is_symlink():
            _merge(path, place, label)
        elif not (path.is_file() and place.is_file() and filecmp.cmp(path, place, shallow=False)):
            raise ArchiveError(f"{label}: it holds {show(path.name)}, which is there already and differs: unpack it by hand")


def walk(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder in a fixed order, making folders accessible and following no link."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
            yield path
            yield from walk(path)
        else:
            yield path


def remove_tree(folder: Path) -> None:
    """Delete a folder, also one whose subfolders an archive made unwritable; none is fine."""
    if folder.is_dir():
        for _ in walk(folder):
            pass
        shutil.rmtree(folder)
