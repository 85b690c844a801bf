"""timm's networks: maps of convolutional networks, patch tokens of transformers, weights by path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline_lib.backbones.build import Backbone, build_backbone, check_name
from pipeline_lib.finetune.blocks import find_blocks, last_blocks

timm = pytest.importorskip("timm", reason="the extra har[timm] is not installed")
pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.integration,
    pytest.mark.slow,
]  # importing timm takes seconds

VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return build_backbone(VIT, "random", grid="native", seed=0)


def test_convolutional_network_with_weights_of_a_file_equals_timms_own(shared: Path) -> None:
    path = shared / "weights" / "tf_efficientnet_lite0_timm.safetensors"
    backbone = build_backbone("timm:tf_efficientnet_lite0", str(path), grid=7, seed=0)
    original = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(path)).eval()
    frames_NCHW = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        features_NKKD = backbone(frames_NCHW)
        torch.testing.assert_close(features_NKKD.permute(0, 3, 1, 2), original.forward_features(frames_NCHW))
    assert features_NKKD.shape == (1, 7, 7, 1280)
    assert backbone.preprocessing == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # timm's configuration, not ImageNet's
    assert (backbone.input, backbone.fixed_size, backbone.weights_description) == ("image", None, "state dict")
    assert len(find_blocks(backbone)) == 8


def test_patch_tokens_without_the_class_token_are_the_map(vit: Backbone) -> None:
    frames_NCHW = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        features_NKKD = vit(frames_NCHW)
        tokens_NLD = vit.extractor.network.forward_features(frames_NCHW)
    assert (vit.grid, vit.channels) == (14, 192)
    assert torch.equal(features_NKKD.reshape(1, 196, 192), tokens_NLD[:, 1:])


def test_cell_of_the_map_is_its_patch_of_the_frame(vit: Backbone) -> None:
    """The transformer's layers mix all patches, so they are skipped."""
    vit.extractor.network.blocks, blocks = torch.nn.Identity(), vit.extractor.network.blocks
    try:
        frames_NCHW = torch.zeros(2, 3, 224, 224)
        frames_NCHW[1, :, 32:48, 80:96] = 1
        with torch.inference_mode():
            features_NKKD = vit(frames_NCHW)
    finally:
        vit.extractor.network.blocks = blocks
    changed_KK = (features_NKKD[0] != features_NKKD[1]).any(dim=-1)
    assert changed_KK.nonzero().tolist() == [[2, 5]]


def test_position_embeddings_follow_the_frames_size(vit: Backbone) -> None:
    assert vit.map_shape(96) == (192, 6, 6)
    assert build_backbone(VIT, "random", grid="native", seed=0, image_size=96).grid == 6
    with pytest.raises(ValueError, match=r"^features\.image_size = 100 does not suit timm:vit_tiny_patch16_224 \(.*100.*16"):
        vit.map_shape(100)


def test_registers_are_dropped_too() -> None:
    backbone = build_backbone("timm:vit_small_patch14_reg4_dinov2", "random", grid="native", seed=0, image_size=56)
    assert (backbone.grid, backbone.own_size) == (4, 518)
    with torch.inference_mode():
        assert backbone(torch.rand(1, 3, 56, 56)).shape == (1, 4, 4, 384)


def test_channels_last_maps_are_turned_round() -> None:
    backbone = build_backbone("timm:swin_tiny_patch4_window7_224", "random", grid="native", seed=0)
    assert (backbone.grid, backbone.channels) == (7, 768)


def test_network_without_a_map_is_told() -> None:
    with pytest.raises(ValueError, match=r"timm:pit_ti_224 \(it gives one token for the whole frame\)"):
        build_backbone("timm:pit_ti_224", "random", grid=7, seed=0)


def test_random_weights_come_from_the_seed_and_saved_ones_load_again(vit: Backbone, tmp_path: Path) -> None:
    assert build_backbone(VIT, "random", grid=7, seed=0).weights_sha256 == vit.weights_sha256
    torch.save(vit.extractor.state_dict(), tmp_path / "saved.pth")
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "timms.pth")
    saved = build_backbone(VIT, "random", grid=7, seed=1, weights_file=tmp_path / "saved.pth")
    assert saved.weights_sha256 == vit.weights_sha256
    assert build_backbone(VIT, str(tmp_path / "timms.pth"), grid=7, seed=0).weights_sha256 != vit.weights_sha256
    with pytest.raises(ValueError, match=r"saved\.pth does not fit timm:resnet18"):
        build_backbone("timm:resnet18", str(tmp_path / "saved.pth"), grid=7, seed=0)


def test_every_layer_of_a_transformer_is_a_block_after_the_embedding(vit: Backbone) -> None:
    assert len(find_blocks(vit)) == 13
    tuned = {id(weight) for module in last_blocks(vit, 1) for weight in module.parameters()}
    network = vit.extractor.network
    assert tuned == {id(weight) for part in (network.blocks[-1], network.norm) for weight in part.parameters()}


def test_stack_of_flows_goes_into_the_patch_embedding() -> None:
    backbone = build_backbone(VIT, "random", grid=2, seed=0, channels_in=10)
    with torch.inference_mode():
        assert backbone(torch.rand(1, 10, 32, 32)).shape == (1, 2, 2, 192)


def test_unknown_name_is_told_with_near_names() -> None:
    with pytest.raises(ValueError, match=r"^features\.backbone = timm:resnet81: .*timm:resnet\d+"):
        check_name("timm:resnet81", "image")
    with pytest.raises(ValueError, match="takes single images, not clips"):
        check_name("timm:resnet18", "clip")


def test_weights_that_cannot_be_downloaded_name_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"^features\.weights = imagenet: timm could not .*\(no network\)"):
        build_backbone("timm:resnet18", "imagenet", grid=7, seed=0)


def test_absent_extra_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ValueError, match=r"^features\.backbone = timm:resnet18: timm is not installed.*pip install 'har\[timm\]'"
    ):
        check_name("timm:resnet18")
