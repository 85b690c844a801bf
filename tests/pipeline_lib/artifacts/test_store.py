from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline_lib.artifacts import Recipe, Store, digest, digests, file_sha256
from pipeline_lib.artifacts.digests import DigestCache
from pipeline_lib.artifacts.store import find_drafts
from pipeline_lib.errors import UserError


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


def damage_silently(path: Path) -> None:
    """Change a file's content and neither its size, its modification time nor its inode, as a failing disk does."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def several(directory):
    (directory / "deep").mkdir()
    for number in range(20):
        (directory / "deep" / f"{number}.bin").write_bytes(bytes(1000 + number))
    return {}


def test_each_file_is_read_once(store, monkeypatch):
    reads, digest_file = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: reads.append(file.name) or digest_file(file, name))
    store.make(RECIPE, several)
    assert store.find("chunk", RECIPE.key)
    assert len(reads) == 20


def test_data_and_folders_are_on_the_disk_before_the_manifest_is(store, monkeypatch):
    """The order of what is synced, by inode; a rename keeps it."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino) or fsync(descriptor))
    directory = store.make(RECIPE, several).directory
    order = [synced.index(path.stat().st_ino) for path in (*directory.rglob("*.bin"), directory / "deep")]
    manifest = synced.index((directory / "manifest.json").stat().st_ino)
    assert max(order) < manifest < synced.index(directory.stat().st_ino) < synced.index(directory.parent.stat().st_ino)


REPLACE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from pipeline_lib.artifacts import Recipe, Store
rename = Path.replace
def replace(source, target):
    if source.suffix == ".draft":  # the second of two renames
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target)
Path.replace = replace
Store(Path(sys.argv[1])).make(Recipe("chunk", "chunk-1", {"frames": 30}, {"shard": "abc"}), lambda folder: {})
"""


def test_a_run_killed_between_the_renames_leaves_the_artifact_that_was_to_be_replaced(store):
    store.make(RECIPE, write("first"))
    process = subprocess.run([sys.executable, "-c", REPLACE_AND_DIE, store.workspace], check=False)
    assert process.returncode == -signal.SIGKILL
    assert store.find("chunk", RECIPE.key) is None
    assert store.remove_drafts() == 2
    assert store.find("chunk", RECIPE.key).path("data.txt").read_text() == "first"
    assert find_drafts(store.workspace) == []


def test_an_artifact_is_put_back_if_its_replacement_cannot_be_renamed(store, monkeypatch):
    store.make(RECIPE, write("first"))
    rename = Path.replace

    def replace(source, target):
        if source.suffix == ".draft":
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="Input/output error"):
        store.make(RECIPE, write("second"))
    assert store.find("chunk", RECIPE.key).path("data.txt").read_text() == "first"


def test_what_was_replaced_goes_with_the_drafts(store):
    artifact = store.make(RECIPE, write("new"))
    old = artifact.directory.with_name(f".{RECIPE.key}.7.old")
    old.mkdir()
    assert store.remove_drafts() == 1
    assert not old.exists()
    assert store.find("chunk", RECIPE.key)


def test_silent_damage_is_found_by_reading_and_is_not_trusted_after(store):
    artifact = store.make(RECIPE, write("hello"))
    damage_silently(artifact.path("data.txt"))
    assert store.find("chunk", RECIPE.key), "size, time and inode are what they were"
    assert store.check_file(artifact, artifact.manifest.files[0]) == "does not hold what was written"
    assert store.find("chunk", RECIPE.key) is None
    made = store.make(RECIPE, write("hello"))
    assert store.check_file(made, made.manifest.files[0]) is None
    assert store.find("chunk", RECIPE.key)


def test_a_file_that_cannot_be_read_is_not_trusted_after(store, monkeypatch):
    artifact = store.make(RECIPE, write("hello"))

    def fail(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(digests, "file_sha256", fail)
        assert store.check_file(artifact, artifact.manifest.files[0]) == "cannot be read (Input/output error)"
        assert store.find("chunk", RECIPE.key) is None
    artifact.path("data.txt").unlink()
    assert store.check_file(artifact, artifact.manifest.files[0]) == "is gone"


def test_a_run_keeps_a_record_of_all_it_used(store):
    first, second = Recipe("chunk", "1", {}), Recipe("train", "1", {})
    refs = [Ref("chunk", first.key), Ref("train", second.key)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda ref: store.record_run("run-1", [ref]), refs))
    (record,) = store.runs().values()
    assert record.artifacts == (("chunk", first.key), ("train", second.key))
    assert [path.name for path in (store.workspace / "runs").iterdir()] == ["run-1.json"]


def test_a_damaged_record_of_a_run_is_named(store):
    store.record_run("run-1", [])
    (store.workspace / "runs" / "run-1.json").write_text("{")
    with pytest.raises(UserError, match=r"run-1\.json: this record .* delete it"):
        store.runs()


@dataclass(frozen=True)
class Ref:
    stage: str
    key: str


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
    monkeypatch.setattr("pipeline_lib.artifacts.digests.file_sha256", lambda path: reads.append(path) or "changed")
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
