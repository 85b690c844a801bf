"""What runs again and what does not: the promises of DESIGN.md's artifacts, on a real run of every stage."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import CLASSES, render_video

HIT = dict.fromkeys(("fetch", "subsample", "chunk", "features", "train", "evaluate", "heatmaps"), "hit")


def task_states(run_id, last):
    """Return the states of a flow run's tasks as Prefect's pages show them, once those of the `last` task are there.

    Prefect records task runs in the background, a moment after they end.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    of_run = FlowRunFilter.model_validate({"id": {"any_": [run_id]}})
    end = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_task_runs(flow_run_filter=of_run)
            is_whole = any(run.name.startswith(last) for run in runs) and all(run.state.is_final() for run in runs)
            if is_whole or time.monotonic() > end:
                return {run.name: run.state.name for run in runs}
            time.sleep(0.1)


def flow_run_id(summary):
    from mlflow import MlflowClient

    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    return client.get_run(summary["mlflow"]["parent_run_id"]).data.tags["prefect.flow_run_id"]


def first_key(summary, stage):
    """Return the key of the first artifact of a stage that a run used."""
    from mlflow.artifacts import download_artifacts

    run = summary["mlflow"]
    manifests = download_artifacts(
        run_id=run["parent_run_id"], artifact_path=f"manifests/{stage}.json", tracking_uri=run["tracking_uri"]
    )
    return json.loads(Path(manifests).read_text())[0]["key"]


def test_the_first_run_makes_everything(finished):
    _, summary = finished
    assert {stage: row["cache"] for stage, row in summary["stages"].items()} == dict.fromkeys((*HIT, "report"), "miss")


def test_nothing_changed_nothing_runs_and_prefect_shows_cached(finished):
    pipeline, _ = finished
    summary = pipeline.run()
    assert {stage: row["cache"] for stage, row in summary["stages"].items()} == HIT | {"report": "miss"}
    states = task_states(flow_run_id(summary), last="report")
    made = {name for name, state in states.items() if state != "Cached"}
    assert {name.split("-")[0] for name in made} == {"check fold 1", "quarantine", "report"}


def test_a_moved_workspace_and_another_folder_for_the_same_videos_are_still_cached(copy_of_finished):
    pipeline = copy_of_finished()
    shutil.move(pipeline.collection, pipeline.folder / "moved")
    pipeline.collection = pipeline.folder / "moved"
    assert pipeline.caches() == HIT


def test_a_change_to_train_leaves_features_untouched(finished):
    """Of the evaluation, the controls stay as well: they know no model."""
    pipeline, _ = finished
    again = {"train": "miss", "evaluate": "partial", "heatmaps": "miss"}
    assert pipeline.caches("train.learning_rate=0.001") == HIT | again


def test_a_change_to_one_model_leaves_the_other_untouched(finished):
    pipeline, _ = finished
    changed = dict.fromkeys(("train", "evaluate", "heatmaps"), "partial")
    assert pipeline.caches("train.alstm_units=12") == HIT | changed


def test_where_and_how_fast_changes_nothing(finished):
    pipeline, _ = finished
    assert pipeline.caches("features.device=cpu", "features.batch_frames=7", "subsample.max_quarantined=0.5") == HIT


def test_one_changed_video_makes_its_shard_and_what_follows_again(copy_of_finished):
    pipeline = copy_of_finished()
    video = sorted((pipeline.collection / "videos" / "wave").iterdir())[0]
    render_video(video, CLASSES["wave"], num_frames=50, seed=99)
    caches = pipeline.caches()
    assert caches == dict.fromkeys(HIT, "miss") | {"subsample": "partial", "features": "partial"}


# What finds harm knows no stage: each kind of it once, and each of three stages whose content must come out the same.
@pytest.mark.parametrize(("harm", "stage"), [("delete", "subsample"), ("damage", "features"), ("delete", "train")])
def test_a_deleted_or_damaged_artifact_is_made_again(copy_of_finished, finished, stage, harm):
    pipeline = copy_of_finished()
    directory = pipeline.workspace / "artifacts" / stage / first_key(finished[1], stage)
    if harm == "delete":
        shutil.rmtree(directory)
    else:
        name = max(json.loads((directory / "manifest.json").read_text())["files"], key=lambda file: file["size_bytes"])
        content = bytearray((directory / name["path"]).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (directory / name["path"]).write_bytes(content)
    # What is made again has the same content, so that what follows from it stays.
    assert pipeline.caches() == HIT | {stage: "partial"}


@pytest.mark.parametrize("stage", ["features", "train"])
def test_refresh_makes_a_stage_again_and_keeps_what_follows_from_the_same_content(copy_of_finished, stage):
    """Of training, this is the promise that the same seed gives the same bits on the same machine."""
    assert copy_of_finished().caches(refresh=(stage,)) == HIT | {stage: "miss"}


def test_until_stops_after_the_stage(finished):
    pipeline, _ = finished
    assert pipeline.caches(until="chunk") == {"fetch": "hit", "subsample": "hit", "chunk": "hit"}
    assert list(pipeline.caches(until="train")) == ["fetch", "subsample", "chunk", "features", "train"]
    assert list(pipeline.caches(until="finetune")) == ["fetch", "subsample", "chunk"]
