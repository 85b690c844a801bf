"""A checkpoint's way back through the artifacts, in a workspace made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_small

from pipeline_lib.artifacts import Artifact, Recipe, Store
from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.params import StreamParams
from pipeline_lib.predict.predictor import Predictor
from pipeline_lib.predict.provenance import bundle_of_training, find_training
from tests.models import GRID, RGB, make_bundle

FRAMES = RGB.model_copy(update={"seed": 3})
FLOW = FRAMES.model_copy(update={"input": "flow"})
STACK = FLOW.model_copy(update={"stack": 3})


class Workspace:
    """Makes the artifacts that a run would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "workspace")

    def train(self, weights: str, seed: int, *, tuned: bool, stream: StreamParams = FRAMES) -> Artifact:
        """Return a model trained over the random backbone of `seed`."""
        bundle = make_bundle(self.folder / "made", seed=seed, params=stream)
        shard = self._make("subsample", {"fps": 15.0, "crf": 20}, {}, "videos.parquet", b"videos")
        inputs = {"shard": shard.content_key}
        if tuned:
            inputs["backbone"] = self._make(
                "finetune", {}, {}, "backbone.safetensors", bundle.backbones[0].read_bytes()
            ).content_key
        recipe = stream.recipe() | {"weights": weights, "frames": 6, "short": "pad", "tail": "drop", "fps": 15.0}
        if path := stream.method_weights:
            recipe["method_weights"] = f"sha256 {self.store.digests.sha256(Path(path))}"
        # another one, so that the right one has to be found
        self._make("features", {"frames": 99}, inputs, "features.h5", b"others")
        features = self._make("features", recipe, inputs, "features.h5", b"features")
        inputs = {"clips": "c", "features 0": features.content_key}
        return self._make("train", {}, inputs, "checkpoint.safetensors", bundle.checkpoint.read_bytes())

    def _make(self, stage: str, params: dict, inputs: dict, name: str, content: bytes) -> Artifact:
        def build(folder: Path) -> dict[str, int]:
            return {"bytes": (folder / name).write_bytes(content)}

        return self.store.make(Recipe(stage, f"{stage}-1", params, inputs), build)


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.store.close()


def test_a_tuned_backbone_is_found_and_the_clips_are_as_they_were(workspace):
    trained = workspace.train("random", 5, tuned=True)
    bundle = bundle_of_training(workspace.store, trained, "alstm fold 1")
    assert bundle.backbones[0].parent.parent.name == "finetune"
    assert bundle.input_spec.model_dump() == {"format": 1, "name": "alstm fold 1", "fps": 15.0, "crf": 20, "frames": 6}
    assert Predictor([bundle], device="cpu").models == ("alstm fold 1",)


@pytest.mark.parametrize("stream", [FRAMES, FLOW, STACK], ids=["frames", "flow", "stack"])
def test_random_weights_are_made_again_once(workspace, monkeypatch, stream):
    trained = workspace.train("random", 3, tuned=False, stream=stream)
    bundle = bundle_of_training(workspace.store, trained)
    Predictor([bundle], device="cpu")
    monkeypatch.setattr("pipeline_lib.backbones.build.build_backbone", None)
    assert bundle_of_training(workspace.store, trained) == bundle


def test_other_weights_than_those_trained_on_are_refused(workspace):
    trained = workspace.train("random", 4, tuned=False)
    with pytest.raises(ValueError, match=r"with other weights than `features\.weights: random` now has"):
        bundle_of_training(workspace.store, trained)
    assert not (workspace.store.workspace / "backbones").exists()


def test_a_weights_file_is_found_by_its_digest(workspace, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(build_backbone("vgg_small", "random", grid=GRID, seed=8).extractor.state_dict(), path)
    trained = workspace.train(f"sha256 {workspace.store.digests.sha256(path)}", 8, tuned=False)
    path.rename(tmp_path / "away")
    with pytest.raises(ValueError, match="was moved or deleted; put it back"):
        bundle_of_training(workspace.store, trained)
    (tmp_path / "away").rename(path)
    Predictor([bundle_of_training(workspace.store, trained)], device="cpu")


def test_weights_of_optical_flow_are_kept_once_they_were_found(workspace, tmp_path):
    path = tmp_path / "raft.pth"
    with torch.random.fork_rng(devices=[]):
        torch.save(raft_small(weights=None).state_dict(), path)
    stream = FLOW.model_copy(update={"method": "raft", "method_weights": str(path)})
    trained = workspace.train("random", 3, tuned=False, stream=stream)
    bundle = bundle_of_training(workspace.store, trained)
    path.unlink()
    assert bundle_of_training(workspace.store, trained) == bundle
    Predictor([bundle], device="cpu")


def test_a_copied_checkpoint_is_recognised_and_a_strangers_is_not(workspace, tmp_path):
    trained = workspace.train("random", 3, tuned=False)
    copy = shutil.copyfile(trained.path("checkpoint.safetensors"), tmp_path / "copy.safetensors")
    assert find_training(workspace.store, copy).key == trained.key
    stranger = make_bundle(tmp_path / "stranger", "lrcn").checkpoint
    with pytest.raises(ValueError, match="not trained in the workspace"):
        find_training(workspace.store, stranger)
    with pytest.raises(ValueError, match="no such checkpoint"):
        find_training(workspace.store, tmp_path / "none.safetensors")


@pytest.mark.parametrize("stage", ["subsample", "features", "finetune"])
def test_an_artifact_that_is_gone_is_named(workspace, stage):
    trained = workspace.train("random", 5, tuned=True)
    shutil.rmtree(workspace.store.workspace / "artifacts" / stage)
    with pytest.raises(ValueError, match=f"the {stage} artifact it was made from is no longer in"):
        bundle_of_training(workspace.store, trained)
