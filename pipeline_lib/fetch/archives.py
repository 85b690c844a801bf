"""Unpack archives, including nested ones, safely: within limits, into one folder, and completely or not at all."""

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
from pipeline_lib.fetch.members import NOT_FIRST_VOLUME, ArchiveError, DamagedArchiveError, Member, check_safe, show
from pipeline_lib.fetch.seven_zip import extract, list_members, too_large

__all__ = ["ArchiveError", "DamagedArchiveError", "Limits", "Unpacked", "unpack"]

logger = logging.getLogger(__name__)

MAX_DEPTH = 3
"""Maximum levels of nested archives. A .tar.gz counts as two."""
INNER_SUFFIXES = (".rar", ".zip", ".7z", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
LATER_VOLUME = re.compile(r"\.part0*(?!0|1\.)\d+\.rar$|\.[r-z]\d\d$", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """Limits on an archive, including everything nested in it."""

    seconds: float = 3600.0
    max_members: int = 200_000
    max_bytes: int = 200 * 1024**3


@dataclass(frozen=True)
class Unpacked:
    """Counts of an unpacked archive."""

    num_files: int
    size_bytes: int


def unpack(archive: Path, destination: Path, limits: Limits = Limits(), label: str | None = None) -> Unpacked:
    """Unpack an archive and the archives nested in it.

    Supports RAR 1.5 to 5, zip, 7z, tar and self-extracting archives; of a multi-volume archive pass the first volume. Nested
    archives are replaced by their contents. Nothing is written outside `destination` and a hidden folder next to it. After a
    failure neither of them exists.

    Raises:
        ArchiveError: one line with the archive (`label` or its name), what is wrong, and how to fix it.
    """
    label = label or archive.name
    assert not destination.exists(), f"{destination} exists already"
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
    """Create a hidden folder next to the destination, and delete those of killed runs.

    Each run has its own folder, because 7-Zip may outlive a killed run and must not write into the next run's files.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}.unpacking-"
    for leftover in [path for path in destination.parent.iterdir() if path.name.startswith(prefix)]:
        with contextlib.suppress(OSError):
            remove_tree(leftover)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))


class _Unpacking:
    """Unpack an archive and its nested archives level by level; the archives of a level are unpacked in parallel."""

    def __init__(self, staging: Path, limits: Limits, label: str) -> None:
        self.staging = staging
        self.limits = limits
        self.label = label
        self.deadline = time.monotonic() + limits.seconds
        self.num_members = 0
        self.folder_bytes: dict[Path, int] = {}
        """Current or expected size of each archive's folder."""
        self.failed = False

    def run(self, archive: Path) -> Path:
        """Return a new folder with the contents of the archive and its nested archives."""
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
        """Return a new folder with the contents of each archive; nothing is written before all are checked."""
        folders = [self.staging / str(len(self.folder_bytes) + number) for number in range(len(archives))]
        with ThreadPoolExecutor(min(num_cores(), len(archives))) as pool:
            listings = list(pool.map(self._list, archives, labels))
            for folder, label, members in zip(folders, labels, listings, strict=True):
                self._check_limits(folder, label, members)
            self._check_disk(sum(self.folder_bytes[folder] for folder in folders))
            try:
                list(pool.map(self._extract, archives, folders, labels, listings))
            except BaseException:
                self.failed = True  # stops the other extractions
                raise
        return folders

    def _list(self, archive: Path, label: str) -> list[Member]:
        """Return the members, up to one more than allowed, after checking that they are safe to unpack."""
        with contextlib.closing(list_members(archive, label, self.deadline)) as listing:
            members = list(itertools.islice(listing, self.limits.max_members + 1))
        check_safe(members, label)
        return members

    def _check_limits(self, folder: Path, label: str, members: list[Member]) -> None:
        """Add the members and their listed sizes to the totals, and check these against the limits."""
        self.num_members += len(members)
        if self.num_members > self.limits.max_members:
            raise ArchiveError(f"{label}: it has more members than allowed: raise fetch.max_members if you trust it")
        self.folder_bytes[folder] = 0
        if not self._fits(folder, sum(member.size_bytes for member in members)):
            raise too_large(label)

    def _fits(self, folder: Path, size_bytes: int) -> bool:
        """Record the size of a folder, and return whether all folders together are within the limit."""
        self.folder_bytes[folder] = max(size_bytes, self.folder_bytes[folder])
        return sum(self.folder_bytes.values()) <= self.limits.max_bytes

    def _check_disk(self, needed_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.staging).free
        if needed_bytes > free_bytes:
            raise ArchiveError(
                f"{self.label}: needs {needed_bytes} bytes of disk, but {free_bytes} are free: free space or move the workspace"
            )

    def _extract(self, archive: Path, folder: Path, label: str, members: list[Member]) -> None:
        """Unpack one archive, check the files against its listing, and set plain permissions on every file."""
        folder.mkdir()
        extract(archive, folder, label, self.deadline, lambda size_bytes: not self.failed and self._fits(folder, size_bytes))
        num_files = size_bytes = 0
        for path in walk(folder):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if stat.S_ISLNK(status.st_mode):
                _check_link(path, folder, label)
            elif stat.S_ISREG(status.st_mode):
                path.chmod(0o644)
                size_bytes += status.st_size
            else:
                raise ArchiveError(f"{label}: {show(path.name)} is a device or pipe: such archives are not unpacked")
            num_files += 1
        listed = sum(member.kind != "folder" for member in members)
        if num_files != listed:
            raise DamagedArchiveError(label, f"it lists {listed} files, but {num_files} were unpacked")
        if not self._fits(folder, size_bytes):
            raise too_large(label)


def _check_link(path: Path, folder: Path, label: str) -> None:
    is_inside = path.resolve().is_relative_to(folder.resolve()) and not path.readlink().is_absolute()
    if not is_inside:
        raise ArchiveError(f"{label}: {show(path.name)} is a link that leaves the folder: remove the link")


def _is_inner(path: Path) -> bool:
    """Return whether a file is a nested archive to unpack, by its name; macOS's `._` files are not."""
    name = path.name.lower()
    is_archive = name.endswith(INNER_SUFFIXES) and not name.startswith(".") and not LATER_VOLUME.search(name)
    return is_archive and path.is_file() and not path.is_symlink()


def _later_volumes(first: Path) -> list[Path]:
    """Return the later volumes of a multi-volume archive, given its first one (`x.rar`, `x.part1.rar`)."""
    stem = re.sub(r"(\.part0*1)?\.rar$", "", first.name, flags=re.IGNORECASE)
    siblings = (path for path in first.parent.iterdir() if path.name.startswith(f"{stem}."))
    return [path for path in siblings if LATER_VOLUME.fullmatch(path.name[len(stem) :])]


def _merge(source: Path, target: Path, label: str) -> None:
    """Move everything from one folder into another; a file in both must be the same."""
    for path in sorted(source.iterdir()):
        new_path = target / path.name
        if not os.path.lexists(new_path):
            path.replace(new_path)
        elif path.is_dir() and new_path.is_dir() and not path.is_symlink() and not new_path.is_symlink():
            _merge(path, new_path, label)
        elif not (path.is_file() and new_path.is_file() and filecmp.cmp(path, new_path, shallow=False)):
            raise ArchiveError(f"{label}: a different file {show(path.name)} exists already: unpack the archive by hand")


def walk(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder in a fixed order; makes folders accessible and does not follow links."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
            yield path
            yield from walk(path)
        else:
            yield path


def remove_tree(folder: Path) -> None:
    """Delete a folder, if it exists, even if an archive made its subfolders unwritable."""
    if folder.is_dir():
        for _ in walk(folder):
            pass
        shutil.rmtree(folder)
