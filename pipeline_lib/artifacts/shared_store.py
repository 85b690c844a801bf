"""A workspace in an object store, with a folder of this machine as its cache.

What the object store has is what counts. The cache holds the files that this machine needed, and finished artifacts that could
not be published because the store was away.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path

from pydantic import TypeAdapter

from pipeline_lib.artifacts.digests import Digest
from pipeline_lib.artifacts.garbage import folder_bytes
from pipeline_lib.artifacts.manifest import MANIFEST, FileRecord, Manifest
from pipeline_lib.artifacts.remote import CONNECTIONS, DamagedError, Remote, folder_of
from pipeline_lib.artifacts.store import Artifact, Reference, RunRecord, SealedFile, Store, seal, write_durably
from pipeline_lib.errors import UserError

OWNER = "cache.json"
"""In the cache: the address of its object store."""
OnTransfer = Callable[[str, int, int], None]
"""Called with `upload` or `download`, the bytes that are added to what is to be transferred, and those that have been."""

_RECORDS = TypeAdapter(tuple[FileRecord, ...])


class SharedStore(Store):
    """The artifacts of a workspace in an object store. Paths are those of the cache: `checkout` brings files there."""

    def __init__(self, cache: Path, remote: Remote, on_transfer: OnTransfer | None = None) -> None:
        """Open the cache of a workspace, creating it if needed.

        Raises:
            UserError: the folder is the cache of another workspace.
        """
        _claim(cache, remote.address)
        super().__init__(cache)
        self.remote = remote
        self.shipped: set[Path] = set()
        """Drafts that a worker on another node may fill."""
        self._on_transfer = on_transfer or (lambda kind, expected, done: None)
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._here: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        """Paths of an artifact's files that this process found whole in the cache."""
        self._use = os.open(self.workspace / ".use.lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._use, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release the cache."""
        super().close()
        os.close(self._use)

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact if it is published; publish it if only this machine has it, else return None."""
        if published := self.load(stage, key):
            return published
        if made_here := self._load_here(stage, key):
            return self._share(made_here.manifest, replace=False)
        return None

    def _load_here(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact if all of its files are in the cache."""
        artifact = super().load(stage, key)
        return artifact if artifact and self._is_intact(artifact) else None

    def load(self, stage: str, key: str) -> Artifact | None:
        """Return the published artifact, or None if it is missing; its files may not be on this machine."""
        manifest = self._manifests.get((stage, key)) or self.remote.manifest(stage, key)
        if manifest is None:
            return None
        self._manifests[stage, key] = manifest
        return Artifact(self.directory(stage, key), manifest)

    def artifacts(self, stage: str = "*") -> Iterator[Artifact]:
        """Yield the published artifacts of one or all stages, in the order of stages and keys."""
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="manifests") as pool:
            found = pool.map(lambda one: self.load(*one), self.remote.published(stage))
            yield from (artifact for artifact in found if artifact is not None)

    def broken(self) -> list[Path]:
        """Return the folders of published artifacts without a readable manifest: none, as these count as missing."""
        return []

    def checkout(self, reference: Reference, *names: str) -> Path:
        """Return the folder of an artifact whose named files and folders, by default all, are in the cache.

        Raises:
            DamagedError: the store does not have what the manifest says; the artifact is withdrawn, and the next run makes it.
            UserError: the artifact is not published, or the store does not answer.
        """
        stage, key = reference.stage, reference.key
        artifact = self.load(stage, key)
        if artifact is None:
            raise UserError(f"{self.remote.address}: {stage}/{key} is gone; run again to make it anew")
        files = [file for file in artifact.manifest.files if not names or _is_in(file.path, names)]
        if missing := self._missing(artifact, files):
            with _locked(artifact.directory.with_name(f".{key}.lock")):
                self._download(artifact, self._missing(artifact, missing))
        with suppress(OSError):
            os.utime(artifact.directory)  # the time of its last use
        return artifact.directory

    def _missing(self, artifact: Artifact, files: Sequence[FileRecord]) -> list[FileRecord]:
        """Return those files that are not in the cache."""
        here = self._here[artifact.stage, artifact.key]
        unseen = [file for file in files if file.path not in here]
        known = self.digests.below(artifact.directory) if unseen else {}
        missing = [file for file in unseen if not self.is_whole(artifact.path(file.path), file, known)]
        here.update({file.path for file in unseen} - {file.path for file in missing})
        return missing

    def _download(self, artifact: Artifact, files: Sequence[FileRecord]) -> None:
        stage, key, folder = artifact.stage, artifact.key, artifact.directory
        self._on_transfer("download", sum(file.size_bytes for file in files), 0)

        def download(file: FileRecord) -> tuple[Path, Digest]:
            digest = self.remote.download(stage, key, file, folder / file.path)
            self._on_transfer("download", 0, file.size_bytes)
            return folder / file.path, digest

        try:
            with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download") as pool:
                self.digests.remember(dict(pool.map(download, files)))
        except DamagedError as error:
            self.withdraw(artifact)
            raise DamagedError(f"{error}; the artifact {stage}/{key} is withdrawn, run again to make it anew") from None
        self._here[stage, key].update(file.path for file in files)
        write_durably(folder / MANIFEST, artifact.manifest.model_dump_json(indent=2))

    def withdraw(self, artifact: Artifact) -> None:
        """Withdraw a damaged artifact from the store, so that the next run makes it again."""
        self.remote.withdraw(artifact.stage, artifact.key)
        self._forget(artifact.stage, artifact.key)

    def _forget(self, stage: str, key: str) -> None:
        self._manifests.pop((stage, key), None)
        self._here.pop((stage, key), None)

    def _seal(self, draft: Path) -> Sequence[SealedFile]:
        """Return the draft's files, which a worker on another node may have uploaded already."""
        if draft in self.shipped:
            self.shipped.discard(draft)
            name = f"drafts/{draft.name}.json"
            if (records := self.remote.get(name)) is not None:
                self.remote.delete([name])
                return [(record, "") for record in _RECORDS.validate_json(records)]
        return seal(draft)

    def hand_over(self, draft: Path) -> None:
        """Upload a finished draft of this node for the driver on another node, which publishes it; keep its files."""
        stage, key = draft.parent.name, draft.name.split(".")[1]
        files = seal(draft)
        records = [record for record, _ in files]
        self._upload(stage, key, draft, records)
        final = self.directory(stage, key)
        self._forget(stage, key)
        shutil.rmtree(final, ignore_errors=True)
        draft.replace(final)
        self.digests.remember({final / record.path: Digest(stamp, record.sha256) for record, stamp in files})
        self.remote.put(f"drafts/{draft.name}.json", _RECORDS.dump_json(tuple(records)))

    def _publish(self, manifest: Manifest, draft: Path, files: Sequence[SealedFile], *, replace: bool) -> Artifact:
        """Publish an artifact: in the cache first, so that nothing is lost if the store is away."""
        stage, key = manifest.stage, manifest.key
        self._forget(stage, key)
        if all(stamp for _, stamp in files):
            super()._publish(manifest, draft, files, replace=replace)
            return self._share(manifest, replace=replace)
        return self._announce(manifest, replace=replace)  # another node has uploaded the files

    def _share(self, manifest: Manifest, *, replace: bool) -> Artifact:
        folder = self.directory(manifest.stage, manifest.key)
        self._upload(manifest.stage, manifest.key, folder, manifest.files)
        return self._announce(manifest, replace=replace)

    def _upload(self, stage: str, key: str, folder: Path, files: Sequence[FileRecord]) -> None:
        self._on_transfer("upload", sum(file.size_bytes for file in files), 0)
        self.remote.upload(stage, key, folder, files, lambda num_bytes: self._on_transfer("upload", 0, num_bytes))

    def _announce(self, manifest: Manifest, *, replace: bool) -> Artifact:
        published = self.remote.publish(manifest, replace=replace)
        self.remote.delete([one.path for one in self.remote.objects(f"partial/{manifest.stage}/{manifest.key}/")])
        self._manifests[manifest.stage, manifest.key] = published
        return Artifact(self.directory(manifest.stage, manifest.key), published)

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact from the object store and from the cache."""
        self.remote.remove(artifact.stage, artifact.key)
        self._forget(artifact.stage, artifact.key)
        if artifact.directory.is_dir():
            super().remove(artifact)

    def check_file(self, artifact: Artifact, file: FileRecord) -> str | None:
        """Download a file of an artifact, and return what is wrong with it, or None."""
        scratch = self.workspace / ".verify" / f"{artifact.key}-{file.sha256}"
        try:
            self.remote.download(artifact.stage, artifact.key, file, scratch)
        except DamagedError as error:
            return "is gone" if str(error).endswith("is gone") else "does not hold what was written"
        finally:
            scratch.unlink(missing_ok=True)
        return None

    def record_run(self, run: str, used: Iterable[Reference]) -> None:
        """Add artifacts to the record of a run, in the cache and in the object store."""
        super().record_run(run, used)
        self.remote.put(f"runs/{run}.json", (self.workspace / "runs" / f"{run}.json").read_bytes())

    def runs(self) -> dict[Path, RunRecord]:
        """Return the records of all machines' runs, by the paths that they have or would have in the cache."""
        for one in self.remote.objects("runs/"):
            path = self.workspace / one.path
            if (content := self.remote.get(one.path)) is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        return super().runs()

    def remove_run(self, path: Path) -> None:
        """Delete the record of a run."""
        super().remove_run(path)
        self.remote.delete([f"runs/{path.name}"])

    def orphans(self) -> Mapping[str, int]:
        """Return objects that no artifact names, with their sizes in bytes: what killed runs and replaced artifacts left.

        Unfinished work of the last day is not among them, as a run may resume it.
        """
        named = {
            f"{folder_of(artifact.stage, artifact.key)}/{name}"
            for artifact in self.artifacts()
            for name in (MANIFEST, *(file.sha256 for file in artifact.manifest.files))
        }
        found = [one for prefix in ("artifacts/", "drafts/", "partial/") for one in self.remote.objects(prefix)]
        oldest = datetime.now(UTC) - timedelta(days=1)
        return {
            one.path: one.size_bytes
            for one in found
            if one.path not in named and not (one.path.startswith("partial/") and one.modified > oldest)
        }

    def remove_orphans(self, orphans: Iterable[str]) -> None:
        """Delete objects that no artifact names."""
        self.remote.delete(orphans)

    @contextmanager
    def mirrored_partial(self, stage: str, key: str, seconds: float) -> Iterator[Path]:
        """Keep the unfinished work of a recipe in the object store while the block runs, so that another node can resume it.

        Args:
            stage: the recipe's stage.
            key: the recipe's key.
            seconds: time between two uploads.
        """
        folder = self.workspace / "partial" / stage / key
        folder.mkdir(parents=True, exist_ok=True)
        mirror = _Mirror(self.remote, f"partial/{stage}/{key}", folder)
        mirror.pull()
        ended = threading.Event()

        def push_until_ended() -> None:
            while not ended.wait(seconds):
                mirror.push()

        thread = threading.Thread(target=push_until_ended, name="mirror", daemon=True)
        thread.start()
        try:
            yield folder
        except BaseException:
            ended.set()
            thread.join()
            mirror.push()
            raise
        finally:
            ended.set()
            thread.join()

    def trim(self, max_bytes: float, keep: Iterable[Reference] = ()) -> int:
        """Delete the least recently used artifacts of the cache until it takes at most `max_bytes`; return the bytes deleted.

        Only what the object store has is deleted, nothing of `keep`, and nothing at all while another process uses the cache.
        """
        if max_bytes == inf:
            return 0
        with self._used_alone() as is_alone:
            if not is_alone:
                return 0
            folders = sorted((self.workspace / "artifacts").glob("*/[!.]*"), key=_modified)
            sizes = {folder: folder_bytes(folder) for folder in folders}
            total = before = sum(sizes.values())
            kept = {self.directory(reference.stage, reference.key) for reference in keep}
            for folder, size in sizes.items():
                if total <= max_bytes:
                    break
                if folder in kept or self.remote.manifest(folder.parent.name, folder.name) is None:
                    continue
                shutil.rmtree(folder)
                self.digests.forget(folder)
                self._here.clear()
                total -= size
            return before - total

    @contextmanager
    def _used_alone(self) -> Iterator[bool]:
        try:
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            fcntl.flock(self._use, fcntl.LOCK_SH)


class _Mirror:
    """Copies the files of a folder of unfinished work to the object store and back."""

    def __init__(self, remote: Remote, prefix: str, folder: Path) -> None:
        self._remote, self._prefix, self._folder = remote, prefix, folder
        self._pushed: dict[str, int] = {}

    def pull(self) -> None:
        """Download what another node left, unless this one has work of its own."""
        if any(self._folder.iterdir()):
            return
        for one in self._remote.objects(f"{self._prefix}/"):
            name = one.path.removeprefix(f"{self._prefix}/")
            if "/" not in name and (content := self._remote.get(one.path)) is not None:
                draft = self._folder / f".{name}.download"
                draft.write_bytes(content)
                draft.replace(self._folder / name)

    def push(self) -> None:
        """Upload the files that changed; a file that is replaced meanwhile comes with the next push."""
        for path in self._folder.iterdir():
            with suppress(OSError, UserError):  # the work itself goes on
                changed = path.stat().st_mtime_ns
                if path.is_file() and not path.name.startswith(".") and self._pushed.get(path.name) != changed:
                    self._remote.put(f"{self._prefix}/{path.name}", path.read_bytes())
                    self._pushed[path.name] = changed


def address_of_cache(folder: Path) -> str | None:
    """Return the address in an object store whose cache a folder is; None if it is none."""
    owner = folder / OWNER
    return json.loads(owner.read_text(encoding="utf-8"))["address"] if owner.is_file() else None


def _claim(cache: Path, address: str) -> None:
    """Make a folder the cache of an address."""
    if found := address_of_cache(cache):
        if found != address:
            raise UserError(f"cache: {cache} is the cache of {found}, not of {address}; choose another folder")
        return
    if (cache / "artifacts").is_dir():
        raise UserError(f"cache: {cache} is a workspace of its own; choose another folder as the cache of {address}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_durably(cache / OWNER, json.dumps({"address": address}))
    except OSError as error:
        raise UserError(f"cache: {cache} cannot be written ({error.strerror}); choose another folder") from None


def _is_in(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in names)


def _modified(path: Path) -> float:
    return path.stat().st_mtime


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, so that of several threads and processes of this machine one downloads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
