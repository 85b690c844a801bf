"""A store behind a cache: a folder is the object store here, which has the same API; test_remote.py has a real server."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path

import pytest

from pipeline_lib.artifacts import Recipe
from pipeline_lib.artifacts.garbage import Limits, find_garbage, remove_garbage
from pipeline_lib.artifacts.lease import hold_lease, live_holders
from pipeline_lib.artifacts.manifest import MANIFEST
from pipeline_lib.artifacts.remote import DamagedError, Remote
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.workspace import Workspace, default_cache, locate_workspace, open_workspace
from pipeline_lib.artifacts.workspace_lock import WorkspaceBusyError
from pipeline_lib.errors import UserError

RECIPE = Recipe("chunk", "1", {"frames": 30})


def write(**texts: str):
    def build(directory: Path) -> dict[str, int]:
        for name, text in texts.items():
            path = directory / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {"files": len(texts)}

    return build


@pytest.fixture
def address(tmp_path) -> str:
    return f"file://{tmp_path / 'bucket'}"


@pytest.fixture
def machine(tmp_path, address):
    """Return what opens the workspace on a machine of this name."""
    opened = []

    def machine(name: str) -> SharedStore:
        opened.append(SharedStore(tmp_path / name, Remote(address)))
        return opened[-1]

    yield machine
    for store in opened:
        store.close()


def local_files(store: SharedStore) -> set[str]:
    folder = store.workspace / "artifacts"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_what_one_machine_made_another_finds(machine):
    made = machine("a").make(RECIPE, write(hello="hello", deep__world="world"))
    other = machine("b")
    found = other.find("chunk", RECIPE.key)
    assert found
    assert found.manifest == made.manifest
    assert not local_files(other), "nothing is downloaded before it is needed"
    folder = other.checkout(found)
    assert (folder / "hello").read_text() == "hello"
    assert (folder / "deep/world").read_text() == "world"


def test_files_are_checked_out_one_by_one(machine):
    made = machine("a").make(RECIPE, write(hello="hello", deep__world="world"))
    other = machine("b")
    assert (other.checkout(made, "deep") / "deep/world").read_text() == "world"
    assert local_files(other) == {f"chunk/{RECIPE.key}/{name}" for name in ("deep/world", MANIFEST)}
    assert other.checkout(made, "not there") == made.directory.parent.parent.parent.parent / "b/artifacts/chunk" / RECIPE.key


def test_content_keys_are_those_of_a_folder(machine, tmp_path):
    shared = machine("a").make(RECIPE, write(hello="hello"))
    store = Workspace(folder=tmp_path / "disk").open()
    assert store.make(RECIPE, write(hello="hello")).content_key == shared.content_key
    store.close()


def test_the_first_publisher_wins_and_the_second_takes_its_files(machine):
    first, second = machine("a"), machine("b")
    assert second.find("chunk", RECIPE.key) is None
    winner = first.make(RECIPE, write(hello="first"))
    adopted = second.make(RECIPE, write(hello="second"))
    assert adopted.content_key == winner.content_key
    assert (second.checkout(adopted) / "hello").read_text() == "first"


def test_a_refreshed_artifact_replaces_the_published_one(machine):
    first, second = machine("a"), machine("b")
    second.checkout(first.make(RECIPE, write(hello="old")))
    first.make(RECIPE, write(hello="new"), replace=True)
    third = machine("b")  # the next run of that machine, whose cache has the old file
    assert (third.checkout(third.find("chunk", RECIPE.key)) / "hello").read_text() == "new"


def test_publishers_at_once_publish_one(machine):
    stores = [machine(f"m{number}") for number in range(6)]
    made = []
    start = threading.Barrier(len(stores))

    def make(number: int) -> None:
        start.wait()
        made.append(stores[number].make(RECIPE, write(hello=f"from {number}")).content_key)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(stores)
    assert len(set(made)) == 1


def test_a_full_disk_is_not_taken_for_a_store_that_is_away(machine, monkeypatch):
    made = machine("a").make(RECIPE, write(hello="hello"))
    other = machine("b")

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(other.remote, "_stream", fail)
    with pytest.raises(OSError, match="No space left"):
        other.checkout(made)


def test_what_could_not_be_published_is_kept_and_published_later(machine, monkeypatch):
    store = machine("a")

    def fail(*args, **kwargs):
        raise UserError("the object store does not answer")

    with monkeypatch.context() as away:
        away.setattr(store.remote, "upload", fail)
        with pytest.raises(UserError, match="does not answer"):
            store.make(RECIPE, write(hello="hello"))
    assert machine("b").find("chunk", RECIPE.key) is None
    again = machine("a")
    assert again.find("chunk", RECIPE.key)
    assert (machine("b").checkout(again.find("chunk", RECIPE.key)) / "hello").read_text() == "hello"


def test_a_half_upload_is_never_seen(machine, monkeypatch):
    store = machine("a")
    with monkeypatch.context() as killed:
        killed.setattr(store.remote, "publish", lambda manifest, replace: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.make(RECIPE, write(hello="hello"))
    other = machine("b")
    assert list(other.artifacts()) == []
    assert other.find("chunk", RECIPE.key) is None


def test_a_damaged_file_withdraws_the_artifact(machine, tmp_path):
    made = machine("a").make(RECIPE, write(hello="hello"))
    (tmp_path / "bucket/artifacts/chunk" / RECIPE.key / made.manifest.files[0].sha256).write_text("xello")
    other = machine("b")
    with pytest.raises(DamagedError, match=r"does not hold what was written; the artifact chunk/.* is withdrawn, run again"):
        other.checkout(other.find("chunk", RECIPE.key))
    assert machine("c").find("chunk", RECIPE.key) is None
    assert not (other.workspace / "artifacts/chunk" / RECIPE.key / "hello").exists()


def test_a_damaged_copy_in_the_cache_is_downloaded_again(machine):
    made = machine("a").make(RECIPE, write(hello="hello"))
    copy = machine("b").checkout(made) / "hello"
    copy.write_text("xello")
    assert (machine("b").checkout(made) / "hello").read_text() == "hello"


def test_runs_of_all_machines_protect_their_artifacts_from_gc(machine):
    one, other = machine("a"), machine("b")
    kept, dropped = one.make(RECIPE, write(hello="hello")), one.make(Recipe("chunk", "2", {}), write(hello="you"))
    other.record_run("run-b", [kept])
    store = machine("c")
    garbage = find_garbage(store, Limits(None, 0.0, 1))
    assert [artifact.key for artifact in garbage.artifacts] == [dropped.key]
    remove_garbage(store, garbage)
    assert [artifact.key for artifact in machine("d").artifacts()] == [kept.key]
    assert not [one for one in store.remote.objects("artifacts/") if dropped.key in one.path]


def test_gc_finds_what_no_manifest_names(machine):
    store = machine("a")
    store.make(RECIPE, write(hello="old"))
    kept = store.make(RECIPE, write(hello="new"), replace=True)
    store.remote.put("artifacts/train/killed/aaaa", b"half")
    garbage = find_garbage(store, Limits(None, None, 1))
    assert sorted(garbage.orphans.values()) == [3, 4]
    remove_garbage(store, garbage)
    assert find_garbage(store, Limits(None, None, 1)).orphans == {}
    assert (machine("b").checkout(kept) / "hello").read_text() == "new"


def test_gc_stops_when_its_lease_is_lost(machine):
    store = machine("a")
    store.make(RECIPE, write(hello="hello"))
    garbage = find_garbage(store, Limits(None, 0.0, 0))

    def lost() -> None:
        raise WorkspaceBusyError("did not answer for too long")

    with pytest.raises(WorkspaceBusyError):
        remove_garbage(store, garbage, lost)
    assert machine("b").find("chunk", RECIPE.key)


def test_the_cache_forgets_what_was_used_least_recently(machine):
    store = machine("a")
    old, new = (store.make(Recipe("chunk", str(number), {}), write(data="x" * 1000)) for number in range(2))
    os.utime(old.directory, (1, 1))
    assert store.trim(1e9) == 0
    freed = store.trim(2500)
    assert 1000 < freed < 2500
    assert not old.directory.exists()
    assert new.directory.exists()
    assert (store.checkout(old) / "data").read_text() == "x" * 1000
    assert store.trim(0, keep=[old]) > 1000
    assert (old.directory / "data").is_file()
    assert not new.directory.exists()


def test_the_cache_keeps_what_another_process_uses_and_what_only_it_has(machine):
    store = machine("a")
    made = store.make(RECIPE, write(data="x" * 1000))
    other = machine("a")
    assert store.trim(0) == 0
    fcntl.flock(other._use, fcntl.LOCK_UN)  # as when it ends
    store.remote.withdraw("chunk", RECIPE.key)
    assert store.trim(0) == 0
    assert (made.directory / "data").is_file()


def test_a_cache_belongs_to_one_workspace(machine, tmp_path):
    machine("a").make(RECIPE, write(hello="hello"))
    with pytest.raises(UserError, match=r"a is the cache of file://.*bucket, not of s3://other; choose another folder"):
        SharedStore(tmp_path / "a", Remote("s3://other"))
    (tmp_path / "disk/artifacts").mkdir(parents=True)
    with pytest.raises(UserError, match="is a workspace of its own"):
        SharedStore(tmp_path / "disk", Remote("s3://other"))


def work_and_fail(store: SharedStore, key: str) -> None:
    with store.mirrored_partial("train", key, seconds=60) as folder:
        (folder / "state.pt").write_bytes(b"epoch 3")
        raise ZeroDivisionError


def test_unfinished_work_goes_on_on_another_machine(machine):
    first, second, recipe = machine("a"), machine("b"), Recipe("train", "1", {})
    with pytest.raises(ZeroDivisionError):
        work_and_fail(first, recipe.key)
    with second.mirrored_partial("train", recipe.key, seconds=60) as folder:
        assert (folder / "state.pt").read_bytes() == b"epoch 3"
    second.make(recipe, write(model="m"))
    assert [one.path for one in second.remote.objects("partial/")] == []


def test_unfinished_work_is_copied_while_it_grows(machine):
    first, second = machine("a"), machine("b")
    with first.mirrored_partial("train", "k", seconds=0.05) as folder:
        (folder / "state.pt").write_bytes(b"epoch 1")
        end = time.monotonic() + 20
        while not list(second.remote.objects("partial/train/k/")):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_runs_may_share_a_workspace_and_gc_may_not(machine):
    remote = machine("a").remote
    with hold_lease(remote.address, "run"), hold_lease(remote.address, "run"):
        assert len(live_holders(remote)) == 2
        with (
            pytest.raises(WorkspaceBusyError, match=r"file://.*: a run \(host .*, process \d+, since .*\) is using this"),
            hold_lease(remote.address, "gc"),
        ):
            pass
    with hold_lease(remote.address, "gc"), pytest.raises(WorkspaceBusyError, match="har gc"), hold_lease(remote.address, "run"):
        pass
    assert live_holders(remote) == {}


def test_a_dead_holder_is_taken_over_and_a_living_one_is_not(machine):
    remote = machine("a").remote
    remote.put("leases/dead.json", json.dumps({"purpose": "gc", "host": "h", "pid": 1, "since": "then"}).encode())
    with pytest.raises(WorkspaceBusyError), hold_lease(remote.address, "run"):
        pass
    time.sleep(1.1)
    with hold_lease(remote.address, "run", heartbeat=0.1, expire=1.0):
        time.sleep(2.5)
        assert [holder.purpose for holder in live_holders(remote, expire=1.0).values()] == ["run"]


@pytest.mark.parametrize("address", ["s3://", "s3:///", "file://team", "ftp://bucket/prefix", "http://host/bucket"])
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="give a folder, or an address such as s3://bucket/prefix"):
        locate_workspace(address)


def test_each_address_has_its_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    assert default_cache("s3://bucket/team").parent == tmp_path
    assert default_cache("s3://bucket/team") != default_cache("s3://bucket-team")
    assert locate_workspace("s3://bucket/team/").folder == default_cache("s3://bucket/team")
    assert locate_workspace("s3://bucket/team", str(tmp_path / "mine")).folder == tmp_path / "mine"


def test_a_cache_means_the_workspace_that_it_belongs_to(machine, tmp_path, address):
    made = machine("a").make(RECIPE, write(hello="hello"))
    machine("b")
    workspace = locate_workspace(str(tmp_path / "b"))
    assert workspace == Workspace(folder=tmp_path / "b", address=address)
    with open_workspace(workspace) as store:
        assert [artifact.manifest for artifact in store.artifacts()] == [made.manifest]
    assert locate_workspace(str(tmp_path)) == Workspace(folder=tmp_path)


def test_an_empty_workspace_can_be_opened(address):
    with open_workspace(locate_workspace(address, str(Path(address.removeprefix("file://")).with_name("cache")))) as store:
        assert list(store.artifacts()) == []


def test_a_store_that_is_gone_is_told_before_work_begins(with_object_store, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline_lib.artifacts.workspace.SECONDS_TO_ANSWER", 0.5)
    begun = time.monotonic()
    with (
        pytest.raises(UserError, match="the object store does not answer"),
        open_workspace(locate_workspace("s3://lab/gone", str(tmp_path / "cache"))) as store,
    ):
        list(store.artifacts())
    assert time.monotonic() - begun < 30
