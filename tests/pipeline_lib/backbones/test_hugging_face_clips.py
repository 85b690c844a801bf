"""VideoMAE and V-JEPA 2 of transformers, from a configuration or a local folder; nothing is downloaded."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from pipeline_lib.backbones.build import Backbone, build_backbone, check_name
from pipeline_lib.backbones.family import import_extra
from pipeline_lib.finetune.blocks import find_blocks, last_blocks

transformers = pytest.importorskip("transformers", reason="the extra har[hf] is not installed")
pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.integration, pytest.mark.slow]  # imports take seconds

SMALL = {"patch_size": 16, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random network of each type."""
    folder = tmp_path_factory.mktemp("hf")
    configs = {
        "videomae": transformers.VideoMAEConfig(
            image_size=48, num_frames=8, intermediate_size=32, use_mean_pooling=False, **SMALL
        ),
        "vjepa2": transformers.VJEPA2Config(
            crop_size=48,
            frames_per_clip=8,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
            num_pooler_layers=1,
            **SMALL,
        ),
    }
    for name, config in configs.items():
        transformers.AutoModel.from_config(config).save_pretrained(folder / name)
    return folder


def build(folder: Path, kind: str, weights: str = "random", *, seed: int = 0) -> Backbone:
    return build_backbone(f"hf:{folder / kind}", weights, grid="native", seed=seed)


@pytest.mark.parametrize(
    ("kind", "frames", "middles"),
    [("videomae", tuple(range(0, 30, 4)), (0, 8, 16, 24)), ("vjepa2", tuple(range(30)), tuple(range(0, 30, 2)))],
)
def test_map_is_made_of_the_tokens(folder: Path, kind: str, frames: tuple[int, ...], middles: tuple[int, ...]) -> None:
    backbone = build(folder, kind, str(folder / kind))
    assert (backbone.input, backbone.channels, backbone.grid, backbone.fixed_size) == ("clip", 24, 3, 48)
    assert (backbone.frames_of_clip(30), backbone.step_frames(30)) == (frames, middles)
    clips_NCTHW = torch.rand(2, 3, len(frames), 48, 48)
    model = transformers.AutoModel.from_pretrained(folder / kind).eval()
    with torch.inference_mode():
        features_NSKKD = backbone(clips_NCTHW)
        wanted_NLD = model(clips_NCTHW.transpose(1, 2)).last_hidden_state
    assert features_NSKKD.shape == (2, len(middles), 3, 3, 24)
    torch.testing.assert_close(features_NSKKD.flatten(1, 3), wanted_NLD)


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_weights_come_from_the_seed_the_folder_or_a_saved_file(folder: Path, kind: str, tmp_path: Path) -> None:
    pretrained = build(folder, kind, str(folder / kind))
    assert build(folder, kind, "hub").weights_sha256 == pretrained.weights_sha256
    first, again, other = build(folder, kind), build(folder, kind), build(folder, kind, seed=1)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    torch.save(pretrained.extractor.state_dict(), tmp_path / "saved.pth")
    assert build(folder, kind, str(tmp_path / "saved.pth")).weights_sha256 == pretrained.weights_sha256


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_every_layer_is_a_block_that_can_be_tuned(folder: Path, kind: str) -> None:
    backbone = build(folder, kind)
    weights = {id(weight) for weight in backbone.extractor.parameters()}
    assert {id(weight) for block in find_blocks(backbone) for module in block for weight in module.parameters()} == weights
    (last, norm) = last_blocks(backbone, 1)
    assert {type(last).__name__, type(norm).__name__} in ({"VideoMAELayer", "LayerNorm"}, {"VJEPA2Layer", "LayerNorm"})


def test_odd_clip_is_filled_with_its_last_frame(folder: Path) -> None:
    backbone = build(folder, "vjepa2")
    assert backbone.frames_of_clip(5) == (0, 1, 2, 3, 4, 4)
    assert backbone.step_frames(5) == (0, 2, 4)


def test_clip_shorter_than_the_window_and_other_sizes_are_told(folder: Path) -> None:
    backbone = build(folder, "videomae")
    with pytest.raises(ValueError, match=r"^chunk\.frames = 7: hf:.*videomae needs clips of at least 8 frames"):
        backbone.step_frames(7)
    with pytest.raises(ValueError, match=r"^features\.image_size = 224: hf:.* supports only 48$"):
        backbone.map_shape(224)


def test_weights_of_another_network_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vjepa2 does not fit hf:.*videomae: its config\.json has another model_type; set"):
        build(folder, "videomae", str(folder / "vjepa2"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit hf:.*videomae: \d+ of \d+ weights"):
        build(folder, "videomae", str(tmp_path / "other.pth"))


def test_folder_without_all_weights_is_told(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder / "videomae")
    model.encoder.layer = model.encoder.layer[:1]
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "videomae" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"does not fit hf:.*: \d+ weights are missing \(encoder\.layer\.1") as caught:
        build(folder, "videomae", str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^features\.weights: transformers could not read the weights of "):
        build(folder, "videomae", str(tmp_path))


def test_unknown_type_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"^features\.backbone = hf:vidoemae: .*similar: hf:videomae, hf:vjepa2$"):
        check_name("hf:vidoemae")


def test_what_the_hub_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("nobody/nothing is not a model\nIf this is private, ...")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(ValueError, match=r"^features\.backbone = hf:nobody/nothing: .*\(nobody/nothing is not a model\); "):
        build_backbone("hf:nobody/nothing", "random", grid=7, seed=0)


def test_the_hubs_retries_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    import_extra("hf:videomae", "transformers", "hf")
    logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
    assert not caplog.records


def test_other_types_of_networks_are_told(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r": a vit of transformers is no network for clips .*videomae, vjepa2$"):
        build_backbone(f"hf:{tmp_path}", "random", grid=7, seed=0)


def test_absent_extra_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match=r"^features\.backbone = hf:videomae: transformers is not installed; run `pip install 'har\[hf\]'`$"
    ):
        check_name("hf:videomae", "clip")
