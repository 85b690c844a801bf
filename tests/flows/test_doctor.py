from __future__ import annotations

import shutil

import pytest

from flows.doctor import _fixed_leftovers, _leftovers
from pipeline_lib.artifacts import Recipe, Store
from pipeline_lib.artifacts.workspace_lock import WorkspaceBusyError, hold_workspace, workspace_id
from pipeline_lib.params import TrackingParams
from tasks.mlflow import tracking


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Return a new MLflow database, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("new")
    tracking.init_tracking(TrackingParams(), folder)
    return folder / "mlflow" / "mlflow.db"


@pytest.fixture
def workspace(tmp_path, monkeypatch, database):
    """What a killed run leaves: a draft, work to resume, an open MLflow run."""
    monkeypatch.delenv(tracking.ENVIRONMENT_VARIABLE, raising=False)
    store = Store(tmp_path)
    store.directory("train", "k").with_name(".k.1-1.draft").mkdir(parents=True)
    (store.partial(Recipe("train", "1", {})) / "state.pt").write_text("state")
    store.close()
    (tmp_path / "mlflow").mkdir()
    shutil.copyfile(database, tmp_path / "mlflow" / "mlflow.db")
    _, experiment_id = tracking.init_tracking(TrackingParams(), tmp_path)
    tracking.start_parent(experiment_id, "killed", {tracking.WORKSPACE_TAG: workspace_id(tmp_path)}, {})
    return tmp_path


def lines(findings):
    return "\n".join(line for _, line in findings)


def content(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def test_it_says_what_fix_would_do_and_changes_nothing(workspace):
    before = content(workspace)
    said = lines(_leftovers(workspace))
    assert "1 unfinished artifacts of killed runs: `har doctor --fix` or the next run removes them" in said
    assert "train was interrupted and will resume from partial/train/" in said
    assert "1 MLflow runs of killed processes are open: `har doctor --fix` or the next run closes them" in said
    assert content(workspace) == before


def test_fix_cleans_up_and_keeps_work_that_goes_on(workspace):
    said = lines(_fixed_leftovers(workspace))
    assert "1 unfinished artifacts of killed runs removed" in said
    assert "1 MLflow runs of killed processes closed" in said
    assert "nothing to clean up after killed runs" in said
    assert list((workspace / "partial").glob("*/*/state.pt"))
    assert not list((workspace / "artifacts").glob("*/.*"))
    assert "nothing to clean up after killed runs" in lines(_leftovers(workspace))


def test_the_records_of_the_folder_a_copy_was_made_of_are_left_alone(workspace, tmp_path_factory):
    copy = workspace.rename(tmp_path_factory.mktemp("other") / "was here")
    workspace.mkdir()
    for path in copy.rglob("*"):
        target = workspace / path.relative_to(copy)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    assert "MLflow runs" not in lines(_fixed_leftovers(workspace))


def test_a_run_under_way_is_left_alone(workspace):
    with hold_workspace(workspace):
        assert lines(_leftovers(workspace)) == "a run is in progress"
        with pytest.raises(WorkspaceBusyError):
            list(_fixed_leftovers(workspace))


def test_a_workspace_that_is_not_there_is_not_made(tmp_path):
    for check in (_leftovers, _fixed_leftovers):
        assert "no workspace" in lines(check(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_more_dead_runs_than_a_page_are_closed(workspace, monkeypatch):
    monkeypatch.setattr(tracking, "RUNS_A_PAGE", 2)
    _, experiment_id = tracking.init_tracking(TrackingParams(), workspace)
    for number in range(4):
        tracking.start_parent(experiment_id, f"{number}", {tracking.WORKSPACE_TAG: workspace_id(workspace)}, {})
    assert tracking.end_dead_runs(experiment_id, workspace_id(workspace)) == 5
    assert tracking.find_dead_runs(workspace_id(workspace)) == []
