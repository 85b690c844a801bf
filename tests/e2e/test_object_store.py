"""A workspace in a real object store: every machine has a cache, and what one made no other makes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.artifacts.remote import Remote
from pipeline_lib.artifacts.workspace import Workspace, open_workspace
from tests.e2e.conftest import TINY, Pipeline
from tests.e2e.test_caching import HIT

ADDRESS = "s3://lab/team"


@pytest.fixture(scope="module")
def machine(tmp_path_factory, tiny_collection, prefect_server):
    """Return what makes a pipeline with a cache of its own, as on a machine of its own."""

    def machine(name: str, address: str = ADDRESS) -> Pipeline:
        folder = tmp_path_factory.mktemp(name)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        params = {"workspace": address, "cache": str(folder / "cache"), "tracking": TINY["tracking"] | {"uri": uri}}
        return Pipeline(folder, tiny_collection, params)

    return machine


@pytest.fixture(scope="module")
def first(with_object_store, machine) -> Pipeline:
    """Return the machine that made everything."""
    pipeline = machine("first")
    stages = pipeline.run()["stages"]
    assert {row["cache"] for row in stages.values()} == {"miss"}
    return pipeline


def published(address: str = ADDRESS) -> dict[tuple[str, str], str]:
    """Return the content keys of the published artifacts."""
    remote = Remote(address)
    found = {one: remote.manifest(*one) for one in remote.published()}
    return {one: manifest.content_key for one, manifest in found.items() if manifest and one[0] != "report"}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_another_machine_makes_nothing_again(first, machine):
    before, second = published(), machine("second")
    summary = second.run()
    assert {stage: row["cache"] for stage, row in summary["stages"].items()} == HIT | {"report": "miss"}
    assert published() == before
    assert Path(summary["report"]).is_file()
    cache = second.folder / "cache" / "artifacts"
    assert not files(cache / "features") - {"manifest.json"}, "features were not needed"


def test_keys_and_contents_are_those_of_a_folder(first, finished):
    pipeline, _ = finished
    with open_workspace(Workspace(folder=pipeline.workspace)) as store:
        on_disk = {(one.stage, one.key): one.content_key for one in store.artifacts() if one.stage != "report"}
    assert published() == on_disk
