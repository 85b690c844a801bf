"""Archives, also nested ones, unpacked within limits: whole and inside one folder, or not at all."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.compute.cores import num_cores
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
        folder = _Unpacking(staging, limits, label).run(archive)
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
    """One run over an archive and what is nested in it, level by level; the archives of a level are unpacked in parallel."""

    def __init__(self, staging: Path, limits: Limits, label: str) -> None:
        self.staging = staging
        self.limits = limits
        self.label = label
        self.deadline = time.monotonic() + limits.seconds
        self.num_members = 0
        self.folder_bytes: dict[Path, int] = {}
        """The size of what lies, or is about to, in the folder of each archive."""
        self.failed = False

    def run(self, archive: Path) -> Path:
        """Return a new folder with everything in the archive."""
        [content] = self._unpack_all([archive], [self.label])
        for depth in itertools.count():
            inner = [path for path in walk(content) if _is_inner(path)]
            labels = [f"{self.label}: {path.relative_to(content).as_posix()}" for path in inner]
            if not inner:
                break
            if depth == MAX_DEPTH:
                raise ArchiveError(f"{labels[0]}: archives are nested more than {MAX_DEPTH} deep: unpack it by hand")
            for path, label, folder in zip(inner, labels, self._unpack_all(inner, labels), strict=True):
                for volume in (path, *_later_volumes(path)):
                    volume.unlink()
                _merge(folder, path.parent, label)
        return content

    def _unpack_all(self, archives: list[Path], labels: list[str]) -> list[Path]:
        """Return a new folder for each archive with what it holds; nothing is written before all are admitted."""
        folders = [self.staging / str(len(self.folder_bytes) + number) for number in range(len(archives))]
        with ThreadPoolExecutor(min(num_cores(), len(archives))) as pool:
            listings = list(pool.map(self._list, archives, labels))
            for folder, label, members in zip(folders, labels, listings, strict=True):
                self._admit(folder, label, members)
            self._check_disk(sum(self.folder_bytes[folder] for folder in folders))
            try:
                list(pool.map(self._extract, archives, folders, labels, listings))
            except BaseException:
                self.failed = True  # which stops the extractions that still run
                raise
        return folders

    def _list(self, archive: Path, label: str) -> list[Member]:
        """Return the members, all of them harmless, and at most one more than allowed."""
        with contextlib.closing(list_members(archive, label, self.deadline)) as listing:
            members = list(itertools.islice(listing, self.limits.max_members + 1))
        refuse_harmful(members, label)
        return members

    def _admit(self, folder: Path, label: str, members: list[Member]) -> None:
        """Count the members and their listed sizes, and refuse them if that is more than allowed."""
        self.num_members += len(members)
        if self.num_members > self.limits.max_members:
            raise ArchiveError(f"{label}: it holds more members than allowed: raise fetch.max_members if that is right")
        self.folder_bytes[folder] = 0
        if not self._fits(folder, sum(member.size_bytes for member in members)):
            raise too_large(label)

    def _fits(self, folder: Path, size_bytes: int) -> bool:
        """Record how much lies in a folder, and return whether all folders together hold no more than allowed."""
        self.folder_bytes[folder] = max(size_bytes, self.folder_bytes[folder])
        return sum(self.folder_bytes.values()) <= self.limits.max_bytes

    def _check_disk(self, needed_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.staging).free
        if needed_bytes > free_bytes:
            raise ArchiveError(
                f"{self.label}: needs {needed_bytes} bytes of disk, {free_bytes} are free: make room or move the workspace"
            )

    def _extract(self, archive: Path, folder: Path, label: str, members: list[Member]) -> None:
        """Unpack one archive, check on disk what its listing promised, and give every file plain permissions."""
        folder.mkdir()
        extract(archive, folder, label, self.deadline, lambda size_bytes: not self.failed and self._fits(folder, size_bytes))
        num_files = size_bytes = 0
        for path in walk(folder):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if stat.S_ISLNK(status.st_mode):
                _refuse_leaving_link(path, folder, label)
            elif stat.S_ISREG(status.st_mode):
                path.chmod(0o644)
                size_bytes += status.st_size
            else:
                raise ArchiveError(f"{label}: {show(path.name)} is a device or pipe: such archives are not unpacked")
            num_files += 1
        listed = sum(member.kind != "folder" for member in members)
        if num_files != listed:
            raise DamagedArchiveError(label, f"it lists {listed} files, {num_files} came out")
        if not self._fits(folder, size_bytes):
            raise too_large(label)


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
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
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
