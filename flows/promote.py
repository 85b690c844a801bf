"""`har promote`: the deliberate step that makes a registered model the one that `har predict` uses."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.terminal import say
from tasks.mlflow import loading, registry, tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def promote(which: str | None, workspace: Path) -> int:
    """Make a version the champion, and say what was and what is.

    Args:
        which: a version; the id of a run, whose best model is meant, or of one model's run, which is registered if it is
            not; default: the newest version.
        workspace: whose MLflow store is meant.

    Raises:
        UserError: there is no such version or run.
    """
    tracking.open_tracking(workspace)
    found = _find(which)
    before = registry.champion()
    registry.make_champion(found)
    say(f"champion was  {registry.describe(before)}")
    say(f"champion is   {registry.describe(found)}")
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
