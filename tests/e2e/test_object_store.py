"""A workspace in a real object store: every machine has a cache, and what one made no other makes again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.doctor import examine
from flows.gc import collect
from flows.predict import predict
from flows.run import _shared as shared
from flows.verify import verify
from pipeline_lib.artifacts.remote import Remote
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.workspace import Workspace, locate_workspace, open_workspace
from pipeline_lib.errors import UserError
from tests.e2e.conftest import TINY, Pipeline
from tests.e2e.test_caching import HIT

ADDRESS = "s3://lab/team"
PROJECT = Path(__file__).parents[2]


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


def test_a_cache_smaller_than_a_run_keeps_what_the_summary_names(first, machine):
    small = machine("small")
    summary = small.run("cache_gb=0.00001")
    assert Path(summary["report"]).is_file()
    assert all(Path(model["checkpoint"]).is_file() for model in summary["models"].values())
    kept = {path.parent.parent.name for path in (small.folder / "cache" / "artifacts").glob("*/*/manifest.json")}
    assert kept == {"train", "report"}


def test_a_run_that_the_store_left_does_not_wait_for_it_again(first, monkeypatch):
    store = locate_workspace(str(first.folder / "cache")).open()
    assert isinstance(store, SharedStore)
    monkeypatch.setattr(store, "trim", lambda *arguments, **options: trimmed.append(arguments))
    trimmed: list[tuple[float]] = []
    with pytest.raises(UserError, match="does not answer"), shared(store, 1.0):
        raise UserError("the object store does not answer")
    assert trimmed == [(1.0,)]
    with shared(store, 1.0):
        pass
    assert trimmed == [(1.0,)] * 3
    store.close()


def test_keys_and_contents_are_those_of_a_folder(first, finished):
    pipeline, _ = finished
    with open_workspace(Workspace(folder=pipeline.workspace)) as store:
        on_disk = {(one.stage, one.key): one.content_key for one in store.artifacts() if one.stage != "report"}
    assert published().items() <= on_disk.items()


def test_commands_work_on_the_address(first, monkeypatch, capsys, tmp_path):
    workspace = locate_workspace(str(first.folder / "cache"))
    assert verify(workspace) == 0
    assert collect(workspace, None, 0.0, 1, delete=False) == 0
    assert "dry run, nothing deleted" in capsys.readouterr().out
    examine(workspace, fix=False)
    assert f"ok    {ADDRESS} answers, with the cache" in capsys.readouterr().out
    elsewhere = Workspace(folder=tmp_path / "cache", address=ADDRESS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first.params["tracking"]["uri"])
    video = next((first.collection / "videos" / "wave").iterdir())
    options = {"source": "models:/har@champion", "output": tmp_path / "out", "overlap": 0.0, "heatmaps": False}
    assert predict([str(video)], workspace=elsewhere, **options) == 0
    assert (tmp_path / "out" / "predictions.json").is_file()


@pytest.mark.slow
def test_two_machines_that_run_at_once_make_one_workspace(with_object_store, machine, finished):
    address = "s3://lab/both"
    runs = [start(machine(name, address)) for name in ("left", "right")]
    for process, log in runs:
        assert process.wait(600) == 0, log.read_text()[-3000:]
    pipeline, _ = finished
    with open_workspace(Workspace(folder=pipeline.workspace)) as store:
        on_disk = {(one.stage, one.key): one.content_key for one in store.artifacts() if one.stage != "report"}
    assert published(address)
    assert published(address).items() <= on_disk.items()
    assert list(Remote(address).objects("drafts/")) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_store_that_goes_away_ends_the_run_in_one_line_and_nothing_is_lost(object_store, with_object_store, machine):
    address = "s3://lab/lost"
    pipeline = machine("lost", address)
    process, log = start(pipeline)
    features = pipeline.folder / "cache" / "artifacts" / "features"
    while not any(features.glob("[!.]*/manifest.json")):
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)
    object_store.kill()
    try:
        assert process.wait(400) == 1
    finally:
        object_store.start()
    lines = [line for line in log.read_text().splitlines() if line.startswith("har: ")]
    assert lines
    assert all(f"workspace: {address}: the object store does not answer" in line for line in lines)
    kept = {path.parent.name: path.read_text() for path in features.glob("[!.]*/manifest.json")}
    process, log = start(pipeline)
    assert process.wait(400) == 0, log.read_text()[-3000:]
    remote = Remote(address)
    for key, text in kept.items():
        manifest = remote.manifest("features", key)
        assert manifest is not None
        assert manifest.model_dump_json(indent=2) == text, "what was finished is published as it was"


def start(pipeline: Pipeline) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the flow of a machine in a process of its own; returns its log as well."""
    log = pipeline.folder / "log"
    command = [sys.executable, "-m", "flows.cli", "run", str(pipeline.write_params())]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=PROJECT, stdout=file, stderr=file, env=own), log
