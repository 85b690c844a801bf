"""Which artifacts no run needs any more, by when they were last of use.

An artifact is of use when it is made, when a run makes or finds it, and as long as something made from it is. The newest runs'
artifacts are always kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline_lib.artifacts.store import Artifact, RunRecord, Store, find_drafts, timestamp
from pipeline_lib.stages import STAGES

Place = tuple[str, str]
"""Stage and key."""


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
    artifacts = {_place(artifact): artifact for artifact in store.artifacts()}
    runs = store.runs()
    chosen = _choose(artifacts, _uses(artifacts, runs.values(), limits.keep_runs), limits)
    places = artifacts.keys() - set(chosen)
    return Garbage(
        artifacts=[artifacts[place] for place in chosen],
        kept=[artifacts[place] for place in sorted(places)],
        partial=[folder for folder in _partial_folders(store) if limits.since and _last_change(folder) < limits.since],
        results=[path for path in _results(store) if _place_of_result(path) not in places],
        drafts=find_drafts(store.workspace),
        runs=[path for path, run in runs.items() if not places.intersection(run.artifacts)],
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


def _place(artifact: Artifact) -> Place:
    return artifact.manifest.stage, artifact.key


def _uses(artifacts: Mapping[Place, Artifact], runs: Iterable[RunRecord], keep_runs: int) -> dict[Place, Use]:
    uses = {place: Use(False, artifact.manifest.created) for place, artifact in artifacts.items()}
    for number, run in enumerate(sorted(runs, key=lambda run: run.time, reverse=True)):
        for place in uses.keys() & set(run.artifacts):
            uses[place] = max(uses[place], Use(number < keep_runs, run.time))
    _extend_to_inputs(artifacts, uses)
    return uses


def _extend_to_inputs(artifacts: Mapping[Place, Artifact], uses: dict[Place, Use]) -> None:
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


def _choose(artifacts: Mapping[Place, Artifact], uses: Mapping[Place, Use], limits: Limits) -> list[Place]:
    """Return what goes: what was of use longest ago first, and of one run's artifacts the largest first."""
    total_bytes = sum(artifact.num_bytes for artifact in artifacts.values())
    chosen = []
    for place in sorted(artifacts, key=lambda place: (uses[place], -artifacts[place].num_bytes)):
        needed, time = uses[place]
        too_old = limits.since is not None and time < limits.since
        too_much = limits.max_bytes is not None and total_bytes > limits.max_bytes
        if not needed and (too_old or too_much):
            chosen.append(place)
            total_bytes -= artifacts[place].num_bytes
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
