from __future__ import annotations

import os

import pytest

from flows import verify as verifying
from flows.verify import verify
from pipeline_lib.artifacts import Recipe, Store
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.errors import UserError

FEATURES, MODEL = Recipe("features", "1", {}), Recipe("train", "1", {})


@pytest.fixture
def store(tmp_path):
    """Two artifacts, of 30 files and of one."""
    store = Store(tmp_path)
    store.make(FEATURES, lambda folder: {"files": [(folder / f"{n}.h5").write_bytes(bytes(1000)) for n in range(30)]})
    store.make(MODEL, lambda folder: {"size": (folder / "checkpoint").write_bytes(b"weights")})
    yield store
    store.close()


def damage_silently(path):
    stat = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_sound_workspace_is_one_line(store, capsys):
    assert verify(Workspace(folder=store.workspace)) == 0
    assert capsys.readouterr().out == "0 damaged of 2 artifacts, 0.0 GB read\n"


def test_each_damaged_artifact_is_one_line_and_no_longer_trusted(store, capsys):
    features, model = (store.find(recipe.stage, recipe.key) for recipe in (FEATURES, MODEL))
    for number in (3, 7):
        damage_silently(features.path(f"{number}.h5"))
    assert store.find("features", FEATURES.key), "what this is about"
    assert verify(Workspace(folder=store.workspace)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"DAMAGED  features/{FEATURES.key}: 3.h5 does not hold what was written (2 of its 30 files are damaged); "
        "the next run that needs it recomputes it",
        "1 damaged of 2 artifacts, 0.0 GB read",
    ]
    assert store.find("features", FEATURES.key) is None
    assert store.find("train", MODEL.key) == model


def test_what_is_missing_is_found(store, capsys):
    store.find("train", MODEL.key).path("checkpoint").unlink()
    (store.directory("features", FEATURES.key) / "manifest.json").write_text("{}")
    assert verify(Workspace(folder=store.workspace)) == 1
    out = capsys.readouterr().out
    assert f"train/{MODEL.key}: checkpoint is gone; the next run" in out
    assert f"features/{FEATURES.key}: its manifest cannot be read; the next run" in out
    assert "2 damaged of 2" in out


def test_what_a_run_replaces_meanwhile_is_not_called_damaged(store, monkeypatch):
    check = Store.check_file

    def check_late(self, artifact, file):
        if artifact.manifest.stage == "train":
            store.make(MODEL, lambda folder: {"size": (folder / "checkpoint").write_bytes(b"others")})
        return check(self, artifact, file)

    monkeypatch.setattr(Store, "check_file", check_late)
    assert verify(Workspace(folder=store.workspace)) == 0


def test_a_stopped_command_does_not_read_on(store, monkeypatch):
    read = []

    def check(self, artifact, file):
        read.append(file)
        raise KeyboardInterrupt

    monkeypatch.setattr(verifying, "READERS", 1)
    monkeypatch.setattr(Store, "check_file", check)
    with pytest.raises(KeyboardInterrupt):
        verify(Workspace(folder=store.workspace))
    assert len(read) < 31


def test_a_folder_that_is_no_workspace_is_named(tmp_path):
    with pytest.raises(UserError, match="no artifacts there; give the workspace of your runs"):
        verify(Workspace(folder=tmp_path / "typo"))
    assert list(tmp_path.iterdir()) == []
