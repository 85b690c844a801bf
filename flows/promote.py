"""`har promote`: make a registered model version the champion, the default of `har predict`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.terminal import say
from tasks.mlflow import loading, registry, tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def promote(which: str | None, workspace: Path) -> int:
    """Make a version the champion, and print the previous and the new one.

    Args:
        which: a version, the id of a parent run (its best model) or of a training run (registered first if needed); default:
            the newest version.
        workspace: workspace of the MLflow store.

    Raises:
        UserError: there is no such version or run.
    """
    tracking.open_tracking(workspace)
    found = _find(which)
    before = registry.champion()
    registry.make_champion(found)
    say(f"previous champion  {registry.describe(before)}")
    say(f"new champion       {registry.describe(found)}")
    return 0


def _find(which: str | None) -> ModelVersion:
    if which is None:
        return registry.newest()
    if not loading.RUN_ID.fullmatch(which):
        return registry.find_version(which)
    run = loading.get_run(which)
    if registry.VERSION not in run.data.tags and "mlflow.parentRunId" in run.data.tags:
        with tempfile.TemporaryDirectory(prefix="har-") as scratch:
            return registry.register(loading.candidate_of_run(run, Path(scratch)))
    return registry.find_version(loading.version_of_run(run))
