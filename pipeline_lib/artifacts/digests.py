"""SHA-256 of files, and a cache of them that survives the process."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digest(NamedTuple):
    """A file's SHA-256 with its size, modification time and inode at the time of reading."""

    stamp: str
    sha256: str


class DigestCache:
    """Persistent cache of the SHA-256 of files by path, size, inode and modification time; thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or create the cache file; a damaged one is replaced by an empty one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._connection = self._open(path)
        except sqlite3.DatabaseError:
            path.unlink()
            self._connection = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)")
        return connection

    def sha256(self, path: Path) -> str:
        """Return the file's SHA-256; read the file only if its size, inode or modification time has changed."""
        stamp = stamp_of(path.stat())
        with self._lock:
            found = self._connection.execute("SELECT stamp, sha256 FROM digests WHERE path = ?", (_name(path),)).fetchone()
        return str(found[1]) if found and found[0] == stamp else self.read(path)

    def below(self, folder: Path) -> dict[Path, Digest]:
        """Return the known digests of a folder's files, with the stamps that these had when they were read."""
        name = _name(folder)
        with self._lock:
            rows = self._connection.execute(
                "SELECT path, stamp, sha256 FROM digests WHERE path > ? AND path < ?", (f"{name}/", f"{name}0")
            ).fetchall()
        return {Path(path): Digest(stamp, sha256) for path, stamp, sha256 in rows}

    def read(self, path: Path) -> str:
        """Read the file, update the cache and return the SHA-256; a file that cannot be read is removed from the cache."""
        try:
            digest = Digest(stamp_of(path.stat()), file_sha256(path))
        except OSError:
            self.forget(path)
            raise
        self.remember({path: digest})
        return digest.sha256

    def remember(self, digests: Mapping[Path, Digest]) -> None:
        """Add digests of files that were read elsewhere."""
        rows = [(_name(path), *digest) for path, digest in digests.items()]
        with self._lock, self._connection:  # commits or rolls back
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)

    def forget(self, path: Path) -> None:
        """Remove a file, or all files of a folder, from the cache."""
        name = _name(path)
        with self._lock:
            # A folder's files sort between "folder/" and "folder0", because "0" follows "/".
            self._connection.execute(
                "DELETE FROM digests WHERE path = ? OR (path > ? AND path < ?)", (name, f"{name}/", f"{name}0")
            )

    def paths(self, sha256: str) -> list[Path]:
        """Return the files with this SHA-256 at their last reading."""
        with self._lock:
            rows = self._connection.execute("SELECT path FROM digests WHERE sha256 = ?", (sha256,)).fetchall()
        return [Path(path) for (path,) in rows]

    def close(self) -> None:
        """Close the cache file."""
        self._connection.close()


def _name(path: Path) -> str:
    return str(path.absolute())


def stamp_of(stat: os.stat_result) -> str:
    """Return what changes when a file is written: size, modification time, inode."""
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
