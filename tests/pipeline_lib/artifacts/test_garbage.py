"""Which artifacts go: `fetch` is upstream of `subsample`, that of `features`, and so on, as in a run."""

from __future__ import annotations

import json
import os

import pytest

from pipeline_lib.artifacts import Recipe, Store, manifest
from pipeline_lib.artifacts import store as store_module
from pipeline_lib.artifacts.garbage import Limits, find_garbage, remove_garbage

MONTHS = [f"2026-{month:02d}-01T00:00:00Z" for month in range(1, 13)]
SIZES = {"fetch": 100, "features": 1000, "train": 10}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "workspace")
    yield store
    store.close()


@pytest.fixture
def clock(monkeypatch):
    """Set the time to a month."""

    def set_month(month):
        for module in (manifest, store_module):
            monkeypatch.setattr(module, "now", lambda: MONTHS[month - 1])

    return set_month


def make(store, stage, params, inputs=()):
    """Make an artifact whose content is its own."""
    recipe = Recipe(stage, "1", {"params": params}, {f"input {n}": one.content_key for n, one in enumerate(inputs)})
    content = f"{stage} {params}".ljust(SIZES[stage])
    return store.make(recipe, lambda folder: {"size": (folder / "data").write_text(content)})


def run(store, name, fetched, features, train):
    """Make features and a model of them, and record them with what was fetched."""
    extracted = make(store, "features", features, [fetched])
    trained = make(store, "train", train, [extracted])
    store.record_run(name, [Ref(one.manifest.stage, one.key) for one in (fetched, extracted, trained)])


class Ref:
    def __init__(self, stage, key):
        self.stage, self.key = stage, key


def gone(store, since=None, max_bytes=None, keep_runs=0):
    """Return the stages and parameters of what would go."""
    garbage = find_garbage(store, Limits(since, max_bytes, keep_runs))
    return [f"{one.manifest.stage} {one.manifest.params['params']}" for one in garbage.artifacts]


@pytest.fixture
def two_runs(store, clock):
    """Two runs that share what they fetched: one in January, one in March."""
    clock(1)
    fetched = make(store, "fetch", "a")
    run(store, "january", fetched, "b", "c")
    clock(3)
    run(store, "march", fetched, "d", "e")
    return store


def test_what_a_later_run_found_stays(two_runs):
    assert sorted(gone(two_runs, since=MONTHS[1])) == ["features b", "train c"]
    assert gone(two_runs, since=MONTHS[0]) == []


def test_the_newest_runs_keep_all_they_used_whatever_its_age(two_runs):
    assert sorted(gone(two_runs, since=MONTHS[11], keep_runs=1)) == ["features b", "train c"]
    assert gone(two_runs, since=MONTHS[11], keep_runs=2) == []
    assert len(gone(two_runs, since=MONTHS[11])) == 5


def test_the_oldest_go_first_until_the_rest_fits_and_of_one_run_the_largest(two_runs):
    total_bytes = sum(one.num_bytes for one in two_runs.artifacts())
    assert total_bytes == 2120
    assert gone(two_runs, max_bytes=total_bytes) == []
    assert gone(two_runs, max_bytes=total_bytes - 1) == ["features b"]
    assert gone(two_runs, max_bytes=1110) == ["features b", "train c"]
    assert gone(two_runs, max_bytes=0, keep_runs=1) == ["features b", "train c"]


def test_what_an_unrecorded_run_made_is_as_old_as_it_is_and_keeps_what_it_was_made_from(store, clock):
    """Such as the shards of a stage that a killed run did not finish."""
    clock(1)
    fetched, unused = make(store, "fetch", "a"), make(store, "fetch", "z")
    clock(3)
    make(store, "features", "b", [fetched])
    assert gone(store, since=MONTHS[1]) == ["fetch z"]
    assert unused.directory.is_dir(), "nothing is removed by looking"


def test_removing_leaves_no_trace_and_finds_nothing_more(two_runs):
    january = next(one for one in two_runs.artifacts("features") if one.manifest.params["params"] == "b")
    results = [two_runs.results / f"features-{one.key}" for one in two_runs.artifacts("features")]
    two_runs.results.mkdir(parents=True)
    for record in (*results, foreign := two_runs.results / "0123-of-another-task"):
        record.write_text("{}")
    limits = Limits(MONTHS[1], None, 1)
    garbage = find_garbage(two_runs, limits)
    remove_garbage(two_runs, garbage)
    assert not january.directory.exists()
    assert two_runs.digests.paths(january.manifest.files[0].sha256) == []
    assert sorted(two_runs.results.iterdir()) == sorted([*(path for path in results if january.key not in path.name), foreign])
    assert [path.stem for path in two_runs.runs()] == ["january", "march"], "the collection of January is still there"
    again = find_garbage(two_runs, limits)
    assert (again.artifacts, again.num_bytes, again.results, again.runs) == ([], 0, [], [])
    assert all(two_runs.find(one.manifest.stage, one.key) for one in two_runs.artifacts())


def test_a_run_of_which_nothing_is_kept_is_forgotten(two_runs):
    remove_garbage(two_runs, find_garbage(two_runs, Limits(MONTHS[11], None, 0)))
    assert list(two_runs.artifacts()) == []
    assert two_runs.runs() == {}


def test_unfinished_work_goes_when_nobody_went_on_with_it(store):
    old, new = (store.partial(Recipe("train", "1", {"epochs": number})) for number in range(2))
    for folder in (old, new):
        (folder / "state.pt").write_text("state")
    for path in (old / "state.pt", old):
        os.utime(path, (0, 0))
    draft = store.directory("train", "k").with_name(".k.1-1.draft")
    draft.mkdir(parents=True)
    assert find_garbage(store, Limits(None, 1e9, 1)).partial == []
    garbage = find_garbage(store, Limits(MONTHS[0], None, 1))
    assert garbage.partial == [old]
    assert garbage.num_bytes == len("state")
    remove_garbage(store, garbage)
    assert (old.exists(), new.exists(), draft.exists()) == (False, True, False)


def test_what_a_link_leads_to_is_not_deleted(store, tmp_path, clock):
    clock(1)
    artifact = make(store, "features", "a")
    artifact.directory.rename(tmp_path / "elsewhere")
    artifact.directory.symlink_to(tmp_path / "elsewhere")
    remove_garbage(store, find_garbage(store, Limits(MONTHS[11], None, 0)))
    assert not artifact.directory.is_symlink()
    assert json.loads((tmp_path / "elsewhere" / "manifest.json").read_text())["key"] == artifact.key
