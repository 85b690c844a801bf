from __future__ import annotations

import os
import shutil

import pytest

from pipeline_lib.artifacts import DigestCache, Recipe, Store, digest, file_sha256


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "workspace")
    yield store
    store.close()


def write(text: str, name: str = "data.txt"):
    def build(directory):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
        return {"lines": 1}

    return build


RECIPE = Recipe("chunk", "chunk-1", {"frames": 30}, {"shard": "abc"})


def test_the_key_depends_on_every_part_of_the_recipe_and_on_no_order():
    same = Recipe("chunk", "chunk-1", {"frames": 30}, {"shard": "abc"})
    others = [
        Recipe("train", "chunk-1", {"frames": 30}, {"shard": "abc"}),
        Recipe("chunk", "chunk-2", {"frames": 30}, {"shard": "abc"}),
        Recipe("chunk", "chunk-1", {"frames": 31}, {"shard": "abc"}),
        Recipe("chunk", "chunk-1", {"frames": 30}, {"shard": "abd"}),
    ]
    assert same.key == RECIPE.key
    assert len({RECIPE.key, *(other.key for other in others)}) == 5
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_a_finished_artifact_is_found_with_its_manifest(store):
    made = store.make(RECIPE, write("hello", "deep/data.txt"))
    found = store.find("chunk", RECIPE.key)
    assert found == made
    assert found.path("deep/data.txt").read_text() == "hello"
    manifest = found.manifest
    assert (manifest.stage, manifest.version, manifest.params, manifest.inputs) == (
        "chunk", "chunk-1", {"frames": 30}, {"shard": "abc"},
    )  # fmt: skip
    assert manifest.counts == {"lines": 1}
    assert manifest.files[0].sha256 == file_sha256(found.path("deep/data.txt"))


def test_the_content_key_tells_content_not_recipe(store):
    other = Recipe("chunk", "chunk-2", {}, {})
    assert store.make(RECIPE, write("same")).content_key == store.make(other, write("same")).content_key
    assert store.make(RECIPE, write("same")).content_key != store.make(other, write("different")).content_key
    assert store.make(RECIPE, write("same", "a")).content_key != store.make(other, write("same", "b")).content_key


def damage_same_size(path):
    path.write_text("HELLO")


def remove(path):
    path.unlink()


def truncate(path):
    path.write_text("hel")


@pytest.mark.parametrize("harm", [damage_same_size, remove, truncate])
def test_a_damaged_artifact_is_not_found_and_can_be_made_again(store, harm):
    harm(store.make(RECIPE, write("hello")).path("data.txt"))
    assert store.find("chunk", RECIPE.key) is None
    store.make(RECIPE, write("hello"))
    assert store.find("chunk", RECIPE.key).path("data.txt").read_text() == "hello"


def test_an_unreadable_manifest_counts_as_missing(store):
    artifact = store.make(RECIPE, write("hello"))
    artifact.path("manifest.json").write_text('{"stage": "chu')
    assert store.find("chunk", RECIPE.key) is None


def test_a_failed_build_leaves_nothing(store):
    def fail(directory):
        (directory / "half").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.make(RECIPE, fail)
    assert store.find("chunk", RECIPE.key) is None
    assert list((store.workspace / "artifacts" / "chunk").iterdir()) == []


def test_a_failed_remake_keeps_the_finished_artifact(store):
    store.make(RECIPE, write("hello"))

    def fail(directory):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.make(RECIPE, fail)
    assert store.find("chunk", RECIPE.key).path("data.txt").read_text() == "hello"


def test_drafts_of_killed_runs_are_removed(store):
    store.make(RECIPE, write("hello"))
    draft = store.directory("chunk", "x").with_name(".x.1-1.draft")
    draft.mkdir()
    assert store.remove_drafts() == 1
    assert not draft.exists()
    assert store.find("chunk", RECIPE.key)


def test_partial_work_outlives_a_failure_and_not_success(store):
    (store.partial(RECIPE) / "state").write_text("epoch 3")
    with pytest.raises(RuntimeError, match="stop"):
        store.make(RECIPE, lambda directory: (_ for _ in ()).throw(RuntimeError("stop")))
    assert (store.partial(RECIPE) / "state").read_text() == "epoch 3"
    store.make(RECIPE, write("hello"))
    assert list(store.partial(RECIPE).iterdir()) == []


def test_a_moved_workspace_keeps_its_artifacts(store, tmp_path):
    store.make(RECIPE, write("hello"))
    shutil.move(store.workspace, tmp_path / "elsewhere")
    moved = Store(tmp_path / "elsewhere")
    assert moved.find("chunk", RECIPE.key)
    moved.close()


def test_digests_are_read_again_only_when_the_file_changed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("one")
    cache = DigestCache(tmp_path / "digests.sqlite")
    first = cache.sha256(path)
    reads = []
    monkeypatch.setattr("pipeline_lib.artifacts.file_sha256", lambda path: reads.append(path) or "changed")
    assert cache.sha256(path) == first
    assert reads == []
    os.utime(path, ns=(1, 1))
    assert cache.sha256(path) == "changed"
    cache.close()


def test_a_damaged_digest_cache_is_begun_anew(tmp_path):
    (tmp_path / "digests.sqlite").write_text("not a database, but long enough to be looked at as if it were one")
    (tmp_path / "file").write_text("one")
    cache = DigestCache(tmp_path / "digests.sqlite")
    assert cache.sha256(tmp_path / "file") == file_sha256(tmp_path / "file")
    cache.close()
