"""Garbage collection: find and delete artifacts by the time of their last use.

An artifact is used when it is made and when a run makes or finds it, or an artifact made from it. The artifacts of the newest
runs are always kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline_lib.artifacts.manifest import timestamp
from pipeline_lib.artifacts.store import Artifact, RunRecord, Store, find_drafts
from pipeline_lib.stages import STAGES

ArtifactId = tuple[str, str]
"""Stage and key."""


class Use(NamedTuple):
    """Last use of an artifact, ordered by importance: whether one of the newest runs needs it, then the time."""

    needed: bool
    time: str


@dataclass(frozen=True)
class Limits:
    """Limits on the artifacts to keep."""

    since: str | None
    """Delete artifacts last used before this timestamp."""
    max_bytes: float | None
    """Delete the least recently used artifacts until the rest take at most this much."""
    keep_runs: int
    """Keep the artifacts of this many of the newest runs in any case."""


@dataclass(frozen=True)
class Garbage:
    """Files and folders to delete, and the artifacts to keep."""

    artifacts: list[Artifact]
    kept: list[Artifact]
    partial: list[Path]
    """Abandoned unfinished work."""
    results: list[Path]
    """Prefect's records of deleted artifacts."""
    drafts: list[Path]
    runs: list[Path]
    """Records of runs without any artifact left."""
    orphans: Mapping[str, int]
    """Objects of an object store that no artifact names, with their sizes in bytes."""

    @property
    def num_bytes(self) -> int:
        """Size of everything to delete."""
        folders = sum(map(folder_bytes, (*self.partial, *self.drafts)))
        return folders + sum(self.orphans.values()) + sum(artifact.num_bytes for artifact in self.artifacts)


def find_garbage(store: Store, limits: Limits) -> Garbage:
    """Return what to delete under the limits, without deleting it.

    Raises:
        UserError: the record of a run cannot be read.
    """
    artifacts = {_id(artifact): artifact for artifact in store.artifacts()}
    runs = store.runs()
    chosen = _choose(artifacts, _uses(artifacts, runs.values(), limits.keep_runs), limits)
    kept = artifacts.keys() - set(chosen)
    return Garbage(
        artifacts=[artifacts[one] for one in chosen],
        kept=[artifacts[one] for one in sorted(kept)],
        partial=[folder for folder in _partial_folders(store) if limits.since and _last_change(folder) < limits.since],
        results=[path for path in _results(store) if _id_of_result(path) not in kept],
        drafts=find_drafts(store.workspace),
        runs=[path for path, run in runs.items() if not kept.intersection(run.artifacts)],
        orphans=store.orphans(),
    )


def remove_garbage(store: Store, garbage: Garbage, check: Callable[[], None] = lambda: None) -> None:
    """Delete what `find_garbage` found; the caller must have held the workspace since before that call.

    Args:
        store: the workspace's artifacts.
        garbage: what to delete.
        check: called before each deletion; raises an error if the workspace is no longer held.
    """
    store.remove_drafts()
    for artifact in garbage.artifacts:
        check()
        store.remove(artifact)
    check()
    store.remove_orphans(garbage.orphans)
    for folder in garbage.partial:
        shutil.rmtree(folder)
    for path in garbage.results:
        path.unlink(missing_ok=True)
    for path in garbage.runs:
        store.remove_run(path)


def folder_bytes(folder: Path) -> int:
    """Return the size of a folder's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _id(artifact: Artifact) -> ArtifactId:
    return artifact.manifest.stage, artifact.key


def _uses(artifacts: Mapping[ArtifactId, Artifact], runs: Iterable[RunRecord], keep_runs: int) -> dict[ArtifactId, Use]:
    uses = {one: Use(False, artifact.manifest.created) for one, artifact in artifacts.items()}
    for number, run in enumerate(sorted(runs, key=lambda run: run.time, reverse=True)):
        for one in uses.keys() & set(run.artifacts):
            uses[one] = max(uses[one], Use(number < keep_runs, run.time))
    _extend_to_inputs(artifacts, uses)
    return uses


def _extend_to_inputs(artifacts: Mapping[ArtifactId, Artifact], uses: dict[ArtifactId, Use]) -> None:
    """Extend each artifact's use to its inputs; of several artifacts with the same content, to the newest."""
    newest_last = sorted(artifacts.items(), key=lambda item: item[1].manifest.created)
    by_content = {artifact.content_key: one for one, artifact in newest_last}
    pending = sorted(artifacts, key=lambda one: uses[one])
    while pending:
        one = pending.pop()
        for content_key in artifacts[one].manifest.inputs.values():
            made_from = by_content.get(content_key)
            if made_from and uses[made_from] < uses[one]:
                uses[made_from] = uses[one]
                pending.append(made_from)


def _choose(artifacts: Mapping[ArtifactId, Artifact], uses: Mapping[ArtifactId, Use], limits: Limits) -> list[ArtifactId]:
    """Return the artifacts to delete, least recently used first and among those of one run the largest first."""
    total_bytes = sum(artifact.num_bytes for artifact in artifacts.values())
    chosen = []
    for one in sorted(artifacts, key=lambda one: (uses[one], -artifacts[one].num_bytes)):
        needed, time = uses[one]
        is_too_old = limits.since is not None and time < limits.since
        is_too_much = limits.max_bytes is not None and total_bytes > limits.max_bytes
        if not needed and (is_too_old or is_too_much):
            chosen.append(one)
            total_bytes -= artifacts[one].num_bytes
    return chosen


def _partial_folders(store: Store) -> list[Path]:
    return sorted((store.workspace / "partial").glob("*/*"))


def _last_change(folder: Path) -> str:
    return timestamp(max(path.lstat().st_mtime for path in (folder, *folder.rglob("*"))))


def _results(store: Store) -> Iterator[Path]:
    return (path for path in store.results.glob("*-*") if path.name.partition("-")[0] in STAGES)


def _id_of_result(path: Path) -> ArtifactId:
    stage, _, key = path.name.partition("-")
    return stage, key
