"""The train stage from feature files to checkpoint."""

import json
import re
from dataclasses import replace

import pytest
import torch

from pipeline_lib.params import MODELS, TrainParams, num_streams
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.train import train_model, training
from pipeline_lib.train.trainer import Trainer, make_optimizer
from pipeline_lib.training.batches import ClipLoader
from pipeline_lib.training.checkpoints import load_checkpoint

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.integration]

PARAMS = TrainParams(
    epochs=4, batch_size=16, learning_rate=3e-3, alstm_units=16, conv_alstm_units=8, device="cpu", attention_penalty=0.1
)


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


def train(model, store, folder, params=PARAMS, **options):
    directory, partial = folder / "artifact", folder / "partial"
    directory.mkdir(parents=True, exist_ok=True)
    partial.mkdir(parents=True, exist_ok=True)
    files = [*store.files] * num_streams(model)
    counts = train_model(store.clips, files, directory, partial, params.of(model), **options)
    return counts, directory


def test_learns_and_writes_a_checkpoint_that_knows_its_origin(tmp_path, feature_store, model):
    params = PARAMS.model_copy(update={"epochs": 40, "patience": 40, "learning_rate": 1e-2})
    rows = []
    counts, directory = train(model, feature_store, tmp_path, params, on_epoch=rows.append)
    history = json.loads((directory / "history.json").read_text())
    assert history == [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert counts["best_val_clip_accuracy"] > 0.6
    assert counts["best_val_calibrated_loss"] == min(row["val_calibrated_loss"] for row in history)
    assert {"epochs": 40, "train_clips": 36, "val_clips": 12}.items() <= counts.items()
    network, metadata = load_checkpoint(directory / "checkpoint.safetensors")
    assert metadata.classes == ("brush_hair", "sit", "walk & wave")
    assert [stream["weights_sha256"] for stream in metadata.streams] == ["a" * 64] * num_streams(model)
    assert metadata.params == params.of(model).recipe()
    assert metadata.model == model
    assert counts["parameters"] == sum(parameter.numel() for parameter in network.parameters())


def test_history_has_the_same_names_for_every_model(tmp_path, feature_store, model):
    _, directory = train(model, feature_store, tmp_path, PARAMS.model_copy(update={"epochs": 1}))
    (row,) = json.loads((directory / "history.json").read_text())
    assert list(row) == [
        *("epoch", "train_loss", "train_frame_accuracy", "train_attention_penalty"),
        *("val_loss", "val_calibrated_loss", "val_frame_accuracy", "val_clip_accuracy"),
    ]


def test_a_killed_training_ends_with_the_same_checkpoint(tmp_path, feature_store, model):
    def break_off(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    _, unbroken = train(model, feature_store, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(model, feature_store, tmp_path / "broken", on_epoch=break_off)
    torch.rand(5)  # whatever else the process draws must not matter
    rows = []
    _, resumed = train(model, feature_store, tmp_path / "broken", on_epoch=rows.append)
    name = "checkpoint.safetensors"
    assert (resumed / name).read_bytes() == (unbroken / name).read_bytes()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_streaming_gives_the_same_weights_as_memory(tmp_path, feature_store, model, monkeypatch):
    _, in_memory = train(model, feature_store, tmp_path / "memory")
    monkeypatch.setattr(training, "fits_in_memory", lambda *_: False)
    _, streamed = train(model, feature_store, tmp_path / "streamed")
    name = "checkpoint.safetensors"
    assert (streamed / name).read_bytes() == (in_memory / name).read_bytes()


def test_every_training_clip_is_visited_once_an_epoch(feature_store):
    train_clips = feature_store.clips[feature_store.clips["split"] == "train"]
    with FeatureReader(feature_store.files) as reader:
        source = ClipLoader(reader, train_clips, ("brush_hair", "sit", "walk & wave"), torch.device("cpu"), in_memory=True)
        order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
        batches = list(source.batches(16, order))
    assert [len(batch.labels_B) for batch in batches] == [16, 16, 4]
    assert torch.equal(torch.cat([batch.labels_B for batch in batches]), source.labels_N[order])
    assert torch.equal(torch.cat([batch.valid_steps_B for batch in batches]), source.valid_frames_N[order])
    signal = torch.stack([batch.features_BTKKD[:, 0].amax(dim=(1, 2)).argmax(dim=1) for batch in batches[:2]]).flatten()
    assert torch.equal(signal, source.labels_N[order][:32])  # features belong to their labels


def test_weight_decay_spares_biases():
    network = torch.nn.Linear(2, 2)
    weights, biases = make_optimizer(network, PARAMS.of("alstm").model_copy(update={"weight_decay": 0.1})).param_groups
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.1, 0.0)
    assert weights["params"] == [network.weight]


def test_seed_decides(tmp_path, feature_store):
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _, directory = train("alstm", feature_store, tmp_path / name, PARAMS.model_copy(update={"seed": seed, "epochs": 1}))
        digests.append(load_checkpoint(directory / "checkpoint.safetensors")[0].state_dict()["network.head.weight"])
    assert torch.equal(digests[0], digests[1])
    assert not torch.equal(digests[0], digests[2])


def without(store, class_name, split):
    clips = store.clips
    return replace(store, clips=clips[(clips["class_name"] != class_name) | (clips["split"] != split)])


def test_a_class_without_training_clips_is_named(tmp_path, feature_store):
    with pytest.raises(ValueError, match="no training video in 1 of 3 classes \\(sit\\)"):
        train("alstm", without(feature_store, "sit", "train"), tmp_path)


def test_no_validation_clips_names_the_parameter(tmp_path, feature_store):
    clips = feature_store.clips
    with pytest.raises(ValueError, match=r"chunk.val_fraction"):
        train("alstm", replace(feature_store, clips=clips[clips["split"] != "val"]), tmp_path)


def test_clips_without_features_are_an_error(tmp_path, feature_store):
    with pytest.raises(ValueError, match=r"24 clips have no features|12 clips have no features"):
        train("alstm", replace(feature_store, files=feature_store.files[:2]), tmp_path)


def test_a_loss_that_explodes_names_epoch_and_learning_rate(tmp_path, feature_store, monkeypatch):
    steps = []
    original = Trainer._step

    def poisoned(self, batch):
        steps.append(len(steps))
        if len(steps) == 4:  # the first step of the second epoch
            batch = batch._replace(features_BTKKD=batch.features_BTKKD * float("inf"))
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(ValueError, match=re.escape("alstm: the loss is nan in epoch 2 with train.learning_rate = 0.003")):
        train("alstm", feature_store, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_asked_for_and_absent(tmp_path, feature_store):
    with pytest.raises(ValueError, match=r"train.device = cuda"):
        train("alstm", feature_store, tmp_path, PARAMS.model_copy(update={"device": "cuda"}))
