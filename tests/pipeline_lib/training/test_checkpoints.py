"""Checkpoints: what goes in comes out, and what is not one says so."""

import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from pipeline_lib.params import MODELS, TrainParams
from pipeline_lib.training.checkpoints import METADATA_KEY, Metadata, load_checkpoint, save_checkpoint
from tests.pipeline_lib.networks.sizes import split_channels

pytestmark = pytest.mark.integration


def make_metadata(model):
    channels = split_channels(model, 6)
    params = TrainParams(alstm_units=8, conv_alstm_units=8, learning_rate=1e-3)
    return Metadata(
        classes=("brush_hair", "käsé $x$"),
        channels=6,
        grid=3,
        params=params.of(model).recipe(),
        features={"backbone": "vgg_small", "weights_sha256": "0" * 64},
        stream_channels=channels if isinstance(channels, tuple) else None,
    )


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_gives_the_same_logits(tmp_path, name):
    metadata = make_metadata(name)
    model = metadata.build().eval()
    save_checkpoint(tmp_path / "a.safetensors", model, metadata)
    save_checkpoint(tmp_path / "b.safetensors", model, metadata)
    loaded, read = load_checkpoint(tmp_path / "a.safetensors")
    features, valid_frames = torch.rand(2, 4, 3, 3, 6), torch.tensor([4, 2])
    assert read == metadata
    assert not loaded.training
    assert torch.equal(loaded(features, valid_frames)[0], model(features, valid_frames)[0])
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_loading_leaves_the_random_generator_alone(tmp_path):
    metadata = make_metadata("alstm")
    save_checkpoint(tmp_path / "a.safetensors", metadata.build(), metadata)
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(before, torch.get_rng_state())


def write_truncated(path):
    metadata = make_metadata("alstm")
    save_checkpoint(path, metadata.build(), metadata)
    path.write_bytes(path.read_bytes()[:-100])


def write_other_size(path):
    metadata = make_metadata("alstm")
    save_checkpoint(path, metadata.build(), metadata.model_copy(update={"channels": 7}))


BAD = {
    "missing": (lambda path: None, "no such checkpoint"),
    "text": (lambda path: path.write_text("not a checkpoint"), "not a checkpoint, or damaged"),
    "truncated": (write_truncated, "not a checkpoint, or damaged"),
    "foreign": (lambda path: save_file({"w": torch.zeros(2)}, path), "not a checkpoint of this project"),
    "no json": (lambda path: save_file({"w": torch.zeros(2)}, path, {METADATA_KEY: "{"}), "another version"),
    "other size": (write_other_size, "another version"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_checkpoint_is_one_clear_line(tmp_path, bad):
    path = tmp_path / "checkpoint.safetensors"
    write, reason = BAD[bad]
    write(path)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.integration
def test_logging_a_models_parts_takes_no_more_than_its_checkpoint_does() -> None:
    """A rerun, which loads nothing else, takes seconds less for it: torchvision alone is two."""
    others = ("torchvision", "h5py", "pandas", "scipy", "sklearn", "psutil", "av", "ffmpeg", "prefect")
    modules = "pipeline_lib.predict.provenance, tasks.mlflow.registry"
    code = f"import sys, {modules}; print([name for name in {others} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
