"""`har gc`: list the artifacts that no recent run uses, and delete them on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from flows.terminal import say
from pipeline_lib.artifacts.garbage import Garbage, Limits, find_garbage, folder_bytes, remove_garbage
from pipeline_lib.artifacts.lease import hold_lease, live_holders
from pipeline_lib.artifacts.manifest import timestamp
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.store import Artifact, Store
from pipeline_lib.artifacts.workspace import Workspace, open_workspace
from pipeline_lib.artifacts.workspace_lock import hold_workspace, is_held
from pipeline_lib.stages import STAGES


def collect(workspace: Workspace, older_than: float | None, max_bytes: float | None, keep_runs: int, *, delete: bool) -> int:
    """Print the artifacts that no kept run uses, delete them if requested, and return 0.

    Args:
        workspace: workspace of the artifacts.
        older_than: minimum age in seconds of artifacts to remove; None for any age.
        max_bytes: maximum total size of the artifacts; None for any.
        keep_runs: number of newest runs that keep all their artifacts.
        delete: whether to delete anything.

    Raises:
        UserError: there is no workspace, or `delete` is set while a run is using it.
    """
    limits = Limits(None if older_than is None else timestamp(max(0.0, time.time() - older_than)), max_bytes, keep_runs)
    with open_workspace(workspace) as store:
        if not delete:
            _say(find_garbage(store, limits), limits)
            held = is_held(workspace.folder) or (isinstance(store, SharedStore) and bool(live_holders(store.remote)))
            say("a run is in progress: delete after it has ended" if held else "dry run, nothing deleted: add --delete")
            return 0
        with hold_workspace(workspace.folder), _alone(store) as check:
            garbage = find_garbage(store, limits)
            _say(garbage, limits)
            remove_garbage(store, garbage, check)
    say("deleted")
    return 0


@contextmanager
def _alone(store: Store) -> Iterator[Callable[[], None]]:
    """Use a workspace in an object store alone; yields a function that fails when that is no longer certain."""
    if isinstance(store, SharedStore):
        with hold_lease(store.remote.address, "gc") as lease:
            yield lease.check
    else:
        yield lambda: None


def _say(garbage: Garbage, limits: Limits) -> None:
    """Print the garbage by stage, with its size."""
    for stage, artifacts in groupby(sorted(garbage.artifacts, key=_order), key=lambda artifact: artifact.manifest.stage):
        _say_row(stage, [artifact.num_bytes for artifact in artifacts], "artifacts")
    _say_row("unfinished", [folder_bytes(folder) for folder in (*garbage.partial, *garbage.drafts)], "folders of killed runs")
    _say_row("orphans", list(garbage.orphans.values()), "objects that no artifact names")
    _say_row("records", [path.stat().st_size for path in (*garbage.results, *garbage.runs)], "of deleted artifacts and runs")
    kept_bytes = sum(artifact.num_bytes for artifact in garbage.kept)
    say(f"{'total':<10} {_size(garbage.num_bytes)}; {len(garbage.kept)} artifacts kept, {_size(kept_bytes)}")
    if limits.max_bytes is not None and kept_bytes > limits.max_bytes:
        say(f"cannot delete more: the newest runs' artifacts exceed {_size(limits.max_bytes).strip()}")


def _order(artifact: Artifact) -> int:
    return STAGES.index(artifact.manifest.stage)


def _say_row(name: str, sizes: Sequence[int], things: str) -> None:
    if sizes:
        say(f"{name:<10} {_size(sum(sizes))}   {len(sizes):,} {things}")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:8.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:8.1f} MB"
