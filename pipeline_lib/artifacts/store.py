"""The artifact store: content-addressed folders, written atomically and verified when read.

An artifact is `<workspace>/artifacts/<stage>/<key>/` with a `manifest.json`. Its key is a digest of its inputs (`Recipe`). Its
content key is a digest of its files, and is what later stages depend on. It is written under a temporary name, synced, and
renamed when complete, so readers never see a partial one. `<workspace>/runs/<id>.json` lists the artifacts that a run used.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline_lib.artifacts.digests import Digest, DigestCache, file_sha256, stamp_of
from pipeline_lib.artifacts.manifest import MANIFEST, FileRecord, Manifest, Recipe, describe, now
from pipeline_lib.errors import UserError

READERS = 8
"""Threads that hash and sync an artifact's files; both release the GIL."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    directory: Path
    manifest: Manifest

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return self.manifest.stage

    @property
    def key(self) -> str:
        """Digest of the artifact's recipe."""
        return self.manifest.key

    @property
    def content_key(self) -> str:
        """Digest of the artifact's files, on which later stages depend."""
        return self.manifest.content_key

    def path(self, name: str) -> Path:
        """Return the path of a file or folder of the artifact."""
        return self.directory / name

    @property
    def num_bytes(self) -> int:
        """Total size of the files."""
        return sum(file.size_bytes for file in self.manifest.files)


class Reference(Protocol):
    """An object that identifies an artifact."""

    @property
    def stage(self) -> str:
        """The artifact's stage."""

    @property
    def key(self) -> str:
        """The artifact's key."""


class RunRecord(BaseModel):
    """The artifacts, as (stage, key), that a run made or found, and the time of the last one."""

    model_config = ConfigDict(frozen=True)
    time: str
    artifacts: tuple[tuple[str, str], ...]


SealedFile = tuple[FileRecord, str]
"""A file's record and its stamp."""


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
        """Return the folder of the artifact with this key, whether or not it exists."""
        return self.workspace / "artifacts" / stage / key

    @property
    def results(self) -> Path:
        """Folder of Prefect's result records, named `<stage>-<key>`."""
        return self.workspace / "prefect" / "results"

    def artifacts(self, stage: str = "*") -> Iterator[Artifact]:
        """Yield the artifacts of one or all stages, in the order of stages and keys, without checking their files."""
        for manifest in sorted((self.workspace / "artifacts").glob(f"{stage}/[!.]*/{MANIFEST}")):
            if artifact := self.load(manifest.parts[-3], manifest.parts[-2]):
                yield artifact

    def broken(self) -> list[Path]:
        """Return the folders of artifacts without a readable manifest."""
        folders = sorted((self.workspace / "artifacts").glob("*/[!.]*"))
        return [folder for folder in folders if not self.load(folder.parent.name, folder.name)]

    def checkout(self, reference: Reference, *names: str) -> Path:
        """Return the folder of an artifact whose named files and folders, by default all, are on this machine."""
        return self.directory(reference.stage, reference.key)

    def file(self, reference: Reference, name: str) -> Path:
        """Return the path of a file of an artifact, brought to this machine; it may not exist."""
        return self.checkout(reference, name) / name

    def file_bytes(self, reference: Reference, name: str) -> int:
        """Return the size of a file of an artifact, which need not be on this machine."""
        artifact = self.load(reference.stage, reference.key)
        return sum(file.size_bytes for file in artifact.manifest.files if file.path == name) if artifact else 0

    def partial(self, recipe: Recipe) -> Path:
        """Return a folder for resumable work, which survives a killed run and is deleted when the artifact is complete."""
        directory = self.workspace / "partial" / recipe.stage / recipe.key
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def load(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact without checking its files, or None if it is missing or its manifest is unreadable."""
        directory = self.directory(stage, key)
        try:
            manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None
        return Artifact(directory, manifest)

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact if all of its files exist and are unchanged, else None."""
        artifact = self.load(stage, key)
        return artifact if artifact and self._is_intact(artifact) else None

    def _is_intact(self, artifact: Artifact) -> bool:
        known = self.digests.below(artifact.directory)
        return all(self.is_whole(artifact.path(file.path), file, known) for file in artifact.manifest.files)

    def is_whole(self, path: Path, file: FileRecord, known: Mapping[Path, Digest]) -> bool:
        """Return whether a file is what its record says; it is read unless a known digest has its stamp."""
        try:
            stat = path.stat()
            digest = known.get(path)
            if stat.st_size != file.size_bytes:
                return False
            is_known = digest is not None and digest.stamp == stamp_of(stat)
            return (digest.sha256 if is_known and digest else self.digests.sha256(path)) == file.sha256
        except OSError:
            return False

    def make(
        self,
        recipe: Recipe,
        build: Callable[[Path], Mapping[str, Any]],
        take_seconds_waited: Callable[[], float] = lambda: 0.0,
        *,
        replace: bool = False,
    ) -> Artifact:
        """Publish the files that `build` writes to an empty folder as the recipe's artifact.

        Args:
            recipe: what it is made from.
            build: fills the folder and returns the artifact's counts.
            take_seconds_waited: returns how long `build` waited for its turn, which does not count as its duration.
            replace: whether to replace what another machine published meanwhile; here nothing else can.
        """
        make = {"": recipe}
        return self.make_several(make, lambda drafts: {"": build(drafts[""])}, take_seconds_waited, replace=replace)[""]

    def make_several(
        self,
        recipes: Mapping[str, Recipe],
        build: Callable[[Mapping[str, Path]], Mapping[str, Mapping[str, Any]]],
        take_seconds_waited: Callable[[], float] = lambda: 0.0,
        *,
        replace: bool = False,
    ) -> dict[str, Artifact]:
        """Publish artifacts that are made together, by name; `build` takes their folders and returns their counts.

        Each counts an equal share of the seconds. For the arguments see `make`.
        """
        started = time.monotonic()
        with ExitStack() as stack:
            drafts = {name: stack.enter_context(self._draft(recipe)) for name, recipe in recipes.items()}
            counts = build(drafts)
            files = {name: self._seal(draft) for name, draft in drafts.items()}
            seconds = (time.monotonic() - started - take_seconds_waited()) / len(recipes)
            manifests = {
                name: describe(recipe, [record for record, _ in files[name]], counts[name], seconds)
                for name, recipe in recipes.items()
            }
            return {
                name: self._publish(manifest, drafts[name], files[name], replace=replace)
                for name, manifest in manifests.items()
            }

    def _seal(self, draft: Path) -> Sequence[SealedFile]:
        return seal(draft)

    def _publish(self, manifest: Manifest, draft: Path, files: Sequence[SealedFile], *, replace: bool) -> Artifact:
        final = self.directory(manifest.stage, manifest.key)
        write_durably(draft / MANIFEST, manifest.model_dump_json(indent=2))
        _replace_directory(draft, final)
        self.digests.remember({final / record.path: Digest(stamp, record.sha256) for record, stamp in files})
        shutil.rmtree(self.workspace / "partial" / manifest.stage / manifest.key, ignore_errors=True)
        return Artifact(final, manifest)

    @contextmanager
    def _draft(self, recipe: Recipe) -> Iterator[Path]:
        final = self.directory(recipe.stage, recipe.key)
        draft = final.with_name(f".{recipe.key}.{os.getpid()}-{threading.get_ident()}-{secrets.token_hex(4)}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def remove_drafts(self) -> int:
        """Delete what killed runs left of artifacts, as `remove_drafts` does."""
        return remove_drafts(self.workspace)

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact and all records of it. The caller must hold the workspace."""
        stage, key = artifact.manifest.stage, artifact.key
        (self.results / f"{stage}-{key}").unlink(missing_ok=True)
        if artifact.directory.is_symlink():
            artifact.directory.unlink()  # the target belongs to another workspace
        else:
            draft = artifact.directory.with_name(f".{key}.{os.getpid()}.draft")  # deleted atomically for readers
            artifact.directory.replace(draft)
            shutil.rmtree(draft)
        self.digests.forget(artifact.directory)

    def withdraw(self, artifact: Artifact) -> None:
        """Let no run reuse a damaged artifact; here `find` sees the damage."""

    def check_file(self, artifact: Artifact, file: FileRecord) -> str | None:
        """Read a file of an artifact, update the digest cache, and return what is wrong with the file, or None."""
        try:
            sha256 = self.digests.read(artifact.path(file.path))
        except FileNotFoundError:
            return "is gone"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None if sha256 == file.sha256 else "does not hold what was written"

    def orphans(self) -> Mapping[str, int]:
        """Return objects that no artifact names, with their sizes in bytes. On a disk artifacts are whole folders."""
        return {}

    def remove_orphans(self, orphans: Iterable[str]) -> None:
        """Delete objects that no artifact names."""

    def record_run(self, run: str, used: Iterable[Reference]) -> None:
        """Add artifacts to the record of a run."""
        path = self.workspace / "runs" / f"{run}.json"
        with self._recording:
            before = _read_run(path).artifacts if path.exists() else ()
            artifacts = sorted({*before, *((one.stage, one.key) for one in used)})
            record = RunRecord(time=now(), artifacts=tuple(artifacts))
            path.parent.mkdir(exist_ok=True)
            write_durably(draft := path.with_suffix(".draft"), record.model_dump_json())
            draft.replace(path)

    def runs(self) -> dict[Path, RunRecord]:
        """Return the records of runs by their paths.

        Raises:
            UserError: a record cannot be read.
        """
        return {path: _read_run(path) for path in sorted((self.workspace / "runs").glob("*.json"))}

    def remove_run(self, path: Path) -> None:
        """Delete the record of a run."""
        path.unlink(missing_ok=True)


def find_drafts(workspace: Path) -> list[Path]:
    """Return the folders of unfinished artifacts, and of artifacts being replaced."""
    return sorted(path for suffix in ("draft", "old") for path in (workspace / "artifacts").glob(f"*/.*.{suffix}"))


def remove_drafts(workspace: Path) -> int:
    """Delete the drafts of killed runs, restore artifacts whose replacement was interrupted, and return their number.

    The caller must hold the workspace.
    """
    drafts = find_drafts(workspace)
    for draft in drafts:
        final = draft.with_name(draft.name.split(".")[1])
        if draft.suffix == ".old" and not final.exists():
            draft.replace(final)
        else:
            shutil.rmtree(draft, ignore_errors=True)
    return len(drafts)


def _read_run(path: Path) -> RunRecord:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValueError:
        raise UserError(
            f"{path}: this record of a run is damaged; delete it, and the run no longer protects its artifacts"
        ) from None


def seal(folder: Path) -> list[SealedFile]:
    """Sync a folder's files to disk, and return the record and the stamp of each."""

    def seal_file(path: Path) -> SealedFile:
        _sync(path)
        stat = path.stat()
        record = FileRecord(path=path.relative_to(folder).as_posix(), size_bytes=stat.st_size, sha256=file_sha256(path))
        return record, stamp_of(stat)

    paths = sorted(folder.rglob("*"))
    with ThreadPoolExecutor(READERS, thread_name_prefix="seal") as readers:
        files = list(readers.map(seal_file, [path for path in paths if path.is_file()]))
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
    """Sync a folder's entries to disk, if the file system supports it."""
    with suppress(OSError):
        _sync(folder)


def write_durably(path: Path, text: str) -> None:
    """Write a text file and sync it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace_directory(source: Path, target: Path) -> None:
    """Rename `source` to `target`. An existing target is kept aside meanwhile, and restored on errors or by `remove_drafts`."""
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
