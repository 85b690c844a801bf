from __future__ import annotations

import pytest

from flows.cli import _parser
from flows.gc import collect
from pipeline_lib.artifacts import Recipe, Store
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.artifacts.workspace_lock import WorkspaceBusyError, hold_workspace
from pipeline_lib.errors import UserError

DAY = 86400.0


@pytest.fixture
def store(tmp_path):
    """Features of long ago, and a model of today."""
    store = Store(tmp_path)
    for stage, created in (("features", "2020-01-01T00:00:00Z"), ("train", None)):
        artifact = store.make(Recipe(stage, "1", {}), lambda folder: {"size": (folder / "data").write_bytes(bytes(2_000_000))})
        if created:
            manifest = artifact.manifest.model_copy(update={"created": created})
            artifact.path("manifest.json").write_text(manifest.model_dump_json())
    yield store
    store.close()


def content(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if "sqlite" not in path.name}


def test_without_delete_it_says_what_would_go_and_removes_nothing(store, capsys):
    before = content(store.workspace)
    assert collect(Workspace(folder=store.workspace), 30 * DAY, None, 1, delete=False) == 0
    assert content(store.workspace) == before
    assert capsys.readouterr().out.splitlines() == [
        "features        2.0 MB   1 artifacts",
        "total           2.0 MB; 1 artifacts kept,      2.0 MB",
        "dry run, nothing deleted: add --delete",
    ]


def test_with_delete_it_removes_what_it_says_and_then_finds_nothing(store, capsys):
    assert collect(Workspace(folder=store.workspace), 30 * DAY, None, 1, delete=True) == 0
    assert [one.manifest.stage for one in store.artifacts()] == ["train"]
    assert "features        2.0 MB" in capsys.readouterr().out
    assert collect(Workspace(folder=store.workspace), 30 * DAY, None, 1, delete=True) == 0
    assert "total           0.0 MB" in capsys.readouterr().out


def test_a_size_that_the_newest_run_does_not_fit_into_is_told(store, capsys):
    store.record_run("newest", [one.manifest for one in store.artifacts()])
    assert collect(Workspace(folder=store.workspace), None, 1e6, 1, delete=True) == 0
    assert len(list(store.artifacts())) == 2
    assert "cannot delete more: the newest runs' artifacts exceed 1.0 MB" in capsys.readouterr().out


def test_nothing_is_removed_while_a_run_is_in_progress(store, capsys):
    with hold_workspace(store.workspace):
        with pytest.raises(WorkspaceBusyError):
            collect(Workspace(folder=store.workspace), 0.0, 0.0, 0, delete=True)
        assert collect(Workspace(folder=store.workspace), 0.0, 0.0, 0, delete=False) == 0
    assert "a run is in progress" in capsys.readouterr().out
    assert len(list(store.artifacts())) == 2


def test_a_folder_that_is_no_workspace_is_named(tmp_path):
    with pytest.raises(UserError, match="no artifacts there"):
        collect(Workspace(folder=tmp_path / "typo"), 0.0, None, 1, delete=True)


@pytest.mark.parametrize(
    ("arguments", "older_than", "keep_size"),
    [
        (["--older-than", "12h"], DAY / 2, None),
        (["--older-than", "2w", "--keep-size", "1.5TB"], 14 * DAY, 1.5e12),
        (["--keep-size", "500MB"], None, 5e8),
    ],
)
def test_ages_and_sizes_carry_their_unit(arguments, older_than, keep_size):
    options = _parser().parse_args(["gc", *arguments])
    assert (options.older_than, options.keep_size, options.keep_runs, options.delete) == (older_than, keep_size, 1, False)
