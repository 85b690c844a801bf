"""Which artifacts no run needs any more, by when they were last of use.

An artifact is of use when it is made, when a run makes or finds it, and as long as something made from it is. The newest runs'
artifacts are always kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline_lib.artifacts import Artifact, Store, find_drafts, timestamp
from pipeline_lib.stages import STAGES


class Use(NamedTuple):
    """Whether one of the newest runs needs an artifact, and when it was last of use; the greater, the more it is worth."""

    needed: bool
    time: str


@dataclass(frozen=True)
class Limits:
    """What may stay."""

    since: str | None
    """Artifacts last of use before this timestamp go."""
    max_bytes: float | None
    """What was of use longest ago goes until all artifacts together take no more than this."""
    keep_runs: int
    """So many of the newest runs keep their artifacts in any case."""


@dataclass(frozen=True)
class Garbage:
    """What can go."""

    artifacts: list[Artifact]
    kept: list[Artifact]
    partial: list[Path]
    """Unfinished work that nobody has gone on with."""
    results: list[Path]
    """Prefect's records of artifacts that are gone."""
    drafts: list[Path]
    runs: list[Path]
    """Records of runs of which nothing is kept."""

    @property
    def num_bytes(self) -> int:
        """The room it takes."""
        folders = sum(map(folder_bytes, (*self.partial, *self.drafts)))
        return folders + sum(artifact.num_bytes for artifact in self.artifacts)


def find_garbage(store: Store, limits: Limits) -> Garbage:
    """Return what no kept run needs; changes nothing.

    Raises:
        UserError: the record of a run cannot be read.
    """
    uses = _uses(store, limits.keep_runs)
    artifacts = list(store.artifacts())
    removed = _choose([(artifact, uses[_place(artifact)]) for artifact in artifacts], limits)
    gone = {_place(artifact) for artifact in removed}
    kept = [artifact for artifact in artifacts if _place(artifact) not in gone]
    places = {_place(artifact) for artifact in kept}
    return Garbage(
        artifacts=removed,
        kept=kept,
        partial=[folder for folder in _partial_folders(store) if limits.since and _last_change(folder) < limits.since],
        results=[path for path in _results(store) if _place_of_result(path) not in places],
        drafts=find_drafts(store.workspace),
        runs=[path for path, run in store.runs().items() if not places.intersection(run.artifacts)],
    )


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Delete what `find_garbage` found; call only while holding the workspace since then."""
    store.remove_drafts()
    for artifact in garbage.artifacts:
        store.remove(artifact)
    for folder in garbage.partial:
        shutil.rmtree(folder)
    for path in (*garbage.results, *garbage.runs):
        path.unlink(missing_ok=True)


def folder_bytes(folder: Path) -> int:
    """Return the size of a folder's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


Place = tuple[str, str]
"""Stage and key."""


def _place(artifact: Artifact) -> Place:
    return artifact.manifest.stage, artifact.key


def _uses(store: Store, keep_runs: int) -> dict[Place, Use]:
    artifacts = {_place(artifact): artifact for artifact in store.artifacts()}
    uses = {place: Use(False, artifact.manifest.created) for place, artifact in artifacts.items()}
    runs = sorted(store.runs().values(), key=lambda run: run.time)
    for number, run in enumerate(reversed(runs)):
        for place in uses.keys() & set(run.artifacts):
            uses[place] = max(uses[place], Use(number < keep_runs, run.time))
    _extend_to_inputs(artifacts, uses)
    return uses


def _extend_to_inputs(artifacts: dict[Place, Artifact], uses: dict[Place, Use]) -> None:
    """Let an artifact be of use as long as what was made from it; of those with the same content, the newest."""
    newest_last = sorted(artifacts.items(), key=lambda item: item[1].manifest.created)
    by_content = {artifact.content_key: place for place, artifact in newest_last}
    waiting = sorted(artifacts, key=lambda place: uses[place])
    while waiting:
        place = waiting.pop()
        for content_key in artifacts[place].manifest.inputs.values():
            made_from = by_content.get(content_key)
            if made_from and uses[made_from] < uses[place]:
                uses[made_from] = uses[place]
                waiting.append(made_from)


def _choose(used: Sequence[tuple[Artifact, Use]], limits: Limits) -> list[Artifact]:
    """Return what goes: what was of use longest ago first, and of one run's artifacts the largest first."""
    total_bytes = sum(artifact.num_bytes for artifact, _ in used)
    chosen = []
    for artifact, use in sorted(used, key=lambda pair: (pair[1], -pair[0].num_bytes)):
        too_old = limits.since is not None and use.time < limits.since
        too_much = limits.max_bytes is not None and total_bytes > limits.max_bytes
        if not use.needed and (too_old or too_much):
            chosen.append(artifact)
            total_bytes -= artifact.num_bytes
    return chosen


def _partial_folders(store: Store) -> list[Path]:
    return sorted((store.workspace / "partial").glob("*/*"))


def _last_change(folder: Path) -> str:
    return timestamp(max(path.lstat().st_mtime for path in (folder, *folder.rglob("*"))))


def _results(store: Store) -> Iterator[Path]:
    return (path for path in store.results.glob("*-*") if path.name.partition("-")[0] in STAGES)


def _place_of_result(path: Path) -> Place:
    stage, _, key = path.name.partition("-")
    return stage, key
