"""`har verify`: check the digests of every artifact's files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby

from flows.terminal import say, show_progress
from pipeline_lib.artifacts.manifest import FileRecord
from pipeline_lib.artifacts.store import READERS, Artifact, Store
from pipeline_lib.artifacts.workspace import Workspace, open_workspace
from tasks import progress

REMEDY = "the next run that needs it recomputes it"


def verify(workspace: Workspace) -> int:
    """Print one line a damaged artifact and return 1 if there are any. Safe while a run is in progress.

    Runs no longer reuse damaged artifacts: the digest cache has their digests, and an object store no longer their manifests.
    """
    with open_workspace(workspace) as store:
        artifacts = list(store.artifacts())
        for folder in (broken := store.broken()):
            say(f"DAMAGED  {folder.parent.name}/{folder.name}: its manifest cannot be read; {REMEDY}")
        with show_progress():
            damaged = list(_damaged(store, artifacts))
        for artifact in damaged:
            store.withdraw(artifact)
        num_damaged = len(broken) + len(damaged)
    num_bytes = sum(artifact.num_bytes for artifact in artifacts)
    say(f"{num_damaged} damaged of {len(artifacts) + len(broken)} artifacts, {num_bytes / 1e9:,.1f} GB read")
    return 1 if num_damaged else 0


def _damaged(store: Store, artifacts: list[Artifact]) -> Iterator[Artifact]:
    """Yield the damaged artifacts, printing one line each."""
    files = [(artifact, file) for artifact in artifacts for file in artifact.manifest.files]
    progress.begin()
    progress.expect("verify", sum(file.size_bytes for _, file in files))

    def check(pair: tuple[Artifact, FileRecord]) -> str | None:
        fault = store.check_file(*pair)
        progress.advance("verify", pair[1].size_bytes)
        return fault

    with _readers() as readers:
        checked = zip(files, readers.map(check, files), strict=True)
        for _, rows in groupby(checked, key=lambda row: row[0][0].directory):
            faults = [(artifact, file, fault) for (artifact, file), fault in rows if fault]
            if not faults:
                continue
            artifact, file, fault = faults[0]
            if store.load(artifact.manifest.stage, artifact.key) != artifact:
                continue  # a run replaced it meanwhile
            more = f" ({len(faults)} of its {len(artifact.manifest.files)} files are damaged)" if len(faults) > 1 else ""
            say(f"DAMAGED  {artifact.manifest.stage}/{artifact.key}: {file.path} {fault}{more}; {REMEDY}")
            yield artifact


@contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    """Open a thread pool that stops immediately when the command is stopped."""
    readers = ThreadPoolExecutor(READERS, thread_name_prefix="verify")
    try:
        yield readers
    finally:
        readers.shutdown(cancel_futures=True)
