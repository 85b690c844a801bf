"""Calls that travel to another node: its cache is another folder of this machine here."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline_lib.artifacts import Recipe
from pipeline_lib.artifacts.remote import Remote
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.shipping import LocalFiles, Shipper, _node_store
from pipeline_lib.artifacts.workspace import default_cache
from pipeline_lib.errors import UserError


@pytest.fixture
def address(tmp_path) -> str:
    return f"file://{tmp_path / 'bucket'}"


@pytest.fixture
def driver(tmp_path, address):
    store = SharedStore(tmp_path / "driver", Remote(address))
    yield store
    store.close()


@pytest.fixture
def node(tmp_path, address, monkeypatch):
    """Let shipments be opened as on a node with a cache of its own; returns that cache."""
    monkeypatch.setenv("HAR_CACHE", str(tmp_path / "node"))
    _node_store.cache_clear()
    yield default_cache(address)
    _node_store.cache_clear()


def make(store: SharedStore, **texts: str):
    def build(directory: Path) -> dict[str, int]:
        for name, text in texts.items():
            (directory / name).write_text(text)
        return {}

    return store.make(Recipe("chunk", "1", texts), build)


def read(folder: Path, names: dict[str, list[Path]], *, out: Path) -> str:
    text = (folder / "a").read_text() + "".join(path.read_text() for paths in names.values() for path in paths)
    (out / "result").write_text(text)
    return str(out)


def call(packed: bytes) -> object:
    with pickle.loads(packed) as (function, args, kwargs):
        return function(*args, **kwargs)


def test_a_call_finds_its_files_and_its_results_come_back(driver, node):
    one, two = make(driver, a="A", unused="u"), make(driver, b="B", other="O")
    shipper = Shipper(driver)

    def build(out: Path) -> dict[str, int]:
        work = (read, (one.directory, {"list": [two.directory / "b"]}), {"out": out})
        where = call(shipper.pack(work))
        assert where.startswith(str(node)), "the node works in its own folder"
        assert list(out.iterdir()) == [], "nothing is written to the driver's"
        return {"made": 1}

    made = driver.make(Recipe("train", "1", {}), build)
    assert made.manifest.counts == {"made": 1}
    assert (driver.checkout(made) / "result").read_text() == "AB"
    assert (node / "artifacts/train" / made.key / "result").read_text() == "AB", "the node keeps a copy"
    assert (node / "artifacts/chunk" / one.key / "unused").exists(), "a folder comes whole"
    assert not (node / "artifacts/chunk" / two.key / "other").exists(), "of files only those that are named come"
    assert list(driver.remote.objects("drafts/")) == []


def test_the_drivers_own_node_works_in_the_drivers_folder(driver, monkeypatch):
    monkeypatch.delenv("HAR_CACHE", raising=False)
    one, shipper = make(driver, a="A"), Shipper(driver)

    def build(out: Path) -> dict[str, int]:
        assert call(shipper.pack((read, (one.directory, {}), {"out": out}))) == str(out)
        return {}

    assert (driver.make(Recipe("train", "1", {}), build).directory / "result").read_text() == "A"


def fail(out: Path) -> None:
    (out / "half").write_text("half")
    raise ZeroDivisionError


def test_a_call_that_fails_publishes_nothing_and_leaves_no_draft(driver, node):
    shipper = Shipper(driver)
    with pytest.raises(ZeroDivisionError):
        driver.make(Recipe("train", "1", {}), lambda out: call(shipper.pack((fail, (out,), {}))))
    assert not [path for path in (node / "artifacts").rglob("*") if path.is_file()]
    assert not list(driver.remote.objects("artifacts/"))


def read_one(paths, name: str) -> str:
    return paths(name).read_text()


def test_files_of_a_mapping_come_when_they_are_asked_for(driver, node, tmp_path):
    one = make(driver, a="A", b="B")
    (tmp_path / "mine").write_text("M")
    files = LocalFiles({"a": one.directory / "a", "b": one.directory / "b", "mine": tmp_path / "mine"}, driver)
    shipper = Shipper(driver)
    assert call(shipper.pack((read_one, (files.__getitem__, "a"), {}))) == "A"
    assert call(shipper.pack((read_one, (files.__getitem__, "mine"), {}))) == "M"
    assert {path.name for path in (node / "artifacts/chunk" / one.key).iterdir()} == {"a", "manifest.json"}


def test_files_of_a_mapping_come_to_the_driver_as_well(driver, tmp_path, address):
    one = make(driver, a="A", b="B")
    other = SharedStore(tmp_path / "other", Remote(address))
    files = LocalFiles({"a": other.directory("chunk", one.key) / "a"}, other)
    assert files["a"].read_text() == "A"
    other.close()


def test_arguments_of_a_call_in_this_process_come_to_this_machine(driver, tmp_path, address):
    one = make(driver, a="A")
    other = SharedStore(tmp_path / "other", Remote(address))
    folder = other.directory("chunk", one.key)
    with Shipper(other).here(((folder,), {})):
        assert (folder / "a").read_text() == "A"
    other.close()


def resume(partial: Path) -> str:
    state = partial / "state"
    before = state.read_text() if state.exists() else ""
    state.write_text(before + "epoch ")
    if before.count("epoch") < 2:
        raise ZeroDivisionError
    return state.read_text()


def test_unfinished_work_goes_on_where_the_last_attempt_ended(driver, node, tmp_path, monkeypatch):
    partial, shipper = driver.partial(Recipe("train", "1", {})), Shipper(driver)
    for number in range(2):
        monkeypatch.setenv("HAR_CACHE", str(tmp_path / f"node {number}"))
        _node_store.cache_clear()
        with pytest.raises(ZeroDivisionError):
            call(shipper.pack((resume, (partial,), {})))
    monkeypatch.setenv("HAR_CACHE", str(tmp_path / "last node"))
    _node_store.cache_clear()
    assert call(shipper.pack((resume, (partial,), {}))) == "epoch epoch epoch "


def name_of(path: Path) -> str:
    return path.name


def test_what_only_the_driver_has_is_refused_elsewhere(driver, node, monkeypatch):
    work = (name_of, (driver.workspace / "sweeps" / "study",), {})
    packed = Shipper(driver).pack(work)
    with pytest.raises(UserError, match=r"sweeps/study: nodes without a shared folder cannot use this; .*HAR_DATABASE"):
        call(packed)
    monkeypatch.delenv("HAR_CACHE")
    _node_store.cache_clear()
    assert call(packed) == "study"


def test_a_nodes_cache_has_the_drivers_limit(driver, node, address):
    one = make(driver, a="A" * 1000)
    shipper = Shipper(driver, max_cache_bytes=500)
    assert call(shipper.pack((name_of, (one.directory,), {}))) == one.key
    assert (node / "artifacts/chunk" / one.key).is_dir(), "it stays while it is used"
    _node_store(address, str(driver.workspace), 500).close()  # as when that process ends
    _node_store.cache_clear()
    assert call(shipper.pack((name_of, (Path("elsewhere"),), {}))) == "elsewhere"
    assert not (node / "artifacts/chunk" / one.key).exists()
