"""Backbones: torchvision's image networks up to their last feature map, on a grid; weights from files or seeds."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from pipeline_lib.backbones import registry, torchvision_images
from pipeline_lib.backbones.build import Backbone, build_backbone, check_name
from pipeline_lib.backbones.weights import sha256_of_weights
from pipeline_lib.params.stages import path_of_weights

pytestmark = pytest.mark.usefixtures("single_thread")

FAMILIES = [
    ("vgg_small", 112, (128, 7, 7)),
    ("alexnet", 224, (256, 6, 6)),
    ("densenet121", 224, (1024, 7, 7)),
    ("efficientnet_b0", 224, (1280, 7, 7)),
    ("googlenet", 224, (1024, 7, 7)),
    ("mnasnet0_5", 224, (1280, 7, 7)),
    ("mobilenet_v3_small", 224, (576, 7, 7)),
    ("regnet_y_400mf", 224, (440, 7, 7)),
    ("resnet18", 224, (512, 7, 7)),
    ("shufflenet_v2_x0_5", 224, (1024, 7, 7)),
    ("squeezenet1_1", 224, (512, 13, 13)),
]
BIG_FAMILIES = [
    ("convnext_tiny", 224, (768, 7, 7)),
    ("inception_v3", 299, (2048, 8, 8)),
    ("maxvit_t", 224, (512, 7, 7)),
    ("resnext50_32x4d", 224, (2048, 7, 7)),
    ("swin_t", 224, (768, 7, 7)),
    ("swin_v2_t", 256, (768, 8, 8)),
    ("vgg16", 224, (512, 7, 7)),
    ("vit_b_16", 224, (768, 14, 14)),
    ("wide_resnet50_2", 224, (2048, 7, 7)),
]


def random_backbone(name: str, *, grid: int = 7, seed: int = 0) -> Backbone:
    return build_backbone(name, "random", grid=grid, seed=seed)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "image_size", "shape"), FAMILIES)
def test_every_family_gives_its_last_map_channels_last_on_the_grid(
    name: str, image_size: int, shape: tuple[int, int, int]
) -> None:
    backbone = random_backbone(name, grid=5)
    with torch.inference_mode():
        features_NKKD = backbone(torch.rand(2, 3, image_size, image_size))
    assert features_NKKD.shape == (2, 5, 5, shape[0])
    assert backbone.map_shape(image_size) == shape
    assert backbone.channels == shape[0]
    assert not backbone.training


@pytest.mark.slow
@pytest.mark.parametrize(("name", "image_size", "shape"), BIG_FAMILIES)
def test_every_big_family_too(name: str, image_size: int, shape: tuple[int, int, int]) -> None:
    test_every_family_gives_its_last_map_channels_last_on_the_grid(name, image_size, shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_t", "vit_b_16", "mnasnet0_5"])
def test_map_leads_to_the_same_classes_as_the_whole_network(name: str, tmp_path: Path) -> None:
    """The cut-off part and torchvision's own classifier together equal the whole network: nothing is lost or added."""
    network = get_model(name, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(name, str(tmp_path / "weights.pth"), grid=14 if name == "vit_b_16" else 7, seed=1)
    head = next(child for child_name, child in network.named_children() if child_name in ("fc", "classifier", "head", "heads"))
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    frames_NCHW = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        network(frames_NCHW)
        features_NKKD = backbone(frames_NCHW)
    if name != "vit_b_16":  # its classifier sees the class token, which is no cell of the map
        torch.testing.assert_close(features_NKKD.mean(dim=(1, 2)), seen[0], rtol=1e-4, atol=1e-5)
    assert features_NKKD.isfinite().all()


def test_map_of_the_grids_size_is_not_pooled() -> None:
    backbone = random_backbone("vgg_small")
    frames_NCHW = torch.rand(1, 3, 112, 112)
    with torch.inference_mode():
        features_NKKD = backbone(frames_NCHW)
        map_NDHW = backbone.extractor(frames_NCHW)
    assert torch.equal(features_NKKD.permute(0, 3, 1, 2), map_NDHW)


def test_random_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = random_backbone("vgg_small", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert random_backbone("vgg_small", seed=3).weights_sha256 == first.weights_sha256
    assert random_backbone("vgg_small", seed=4).weights_sha256 != first.weights_sha256


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_of_a_file_are_used_and_recognised(tmp_path: Path, suffix: str) -> None:
    tuned = random_backbone("vgg_small", seed=9)
    state = tuned.extractor.state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = build_backbone("vgg_small", "random", grid=7, seed=0, weights_file=path)
    assert loaded.weights_sha256 == tuned.weights_sha256
    assert str(tmp_path) not in loaded.weights_description
    assert torch.equal(loaded.extractor.features[0].weight, tuned.extractor.features[0].weight)


def test_digest_tells_values_names_and_shapes_apart_but_not_counters() -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(1)}
    changes = [{"a": state["a"] + 1}, {"a": state["a"].view(3, 2)}, {"c": torch.zeros(1)}]
    digests = {sha256_of_weights(state | change) for change in [{}, *changes]}
    assert len(digests) == 4
    assert sha256_of_weights(state | {"n.num_batches_tracked": torch.tensor(7)}) == sha256_of_weights(state)
    assert sha256_of_weights(dict(reversed(state.items()))) == sha256_of_weights(state)


def test_classifier_in_the_file_is_ignored(tmp_path: Path) -> None:
    network = get_model("squeezenet1_1", weights=None, num_classes=51)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded = build_backbone("squeezenet1_1", str(tmp_path / "w.pth"), grid=7, seed=0)
    assert torch.equal(loaded.extractor.features[0].weight, network.features[0].weight)


def test_torchvisions_older_names_are_understood(tmp_path: Path) -> None:
    state = random_backbone("densenet121", seed=2).extractor.state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for name, value in state.items()}
    assert any("norm.1." in name for name in old)
    torch.save(old, tmp_path / "old.pth")
    loaded = build_backbone("densenet121", str(tmp_path / "old.pth"), grid=7, seed=0)
    assert loaded.weights_sha256 == sha256_of_weights(state)


def test_real_imagenet_features_of_squeezenet_load(shared: Path) -> None:
    path = shared / "weights" / "squeezenet1_1_imagenet_features.pth"
    backbone = build_backbone("squeezenet1_1", str(path), grid=7, seed=0)
    with torch.inference_mode():
        assert backbone(torch.rand(1, 3, 224, 224)).shape == (1, 7, 7, 512)
    assert backbone.map_shape(224) == (512, 13, 13)


def test_weights_that_do_not_fit_are_one_line_naming_backbone_file_and_keys(tmp_path: Path) -> None:
    state = random_backbone("vgg_small").extractor.state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state | {"features.0.weight": torch.zeros(8, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"weights\.pth does not fit vgg_small: 1 of .*features\.0\.weight") as caught:
        build_backbone("vgg_small", str(path), grid=7, seed=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"does not fit resnet18: .*conv1\.weight"):
        build_backbone("resnet18", str(path), grid=7, seed=0)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x02cos\nsystem\n(S'true'\ntR."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_state_dict_is_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^features\.weights: .* is not a state dict") as caught:
        build_backbone("vgg_small", str(path), grid=7, seed=0)
    assert "\n" not in str(caught.value)


def test_missing_file_and_saved_list_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        build_backbone("vgg_small", str(tmp_path / "none.pth"), grid=7, seed=0)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="has no state dict"):
        build_backbone("vgg_small", str(tmp_path / "list.pth"), grid=7, seed=0)


def test_unknown_network_is_told_with_near_names() -> None:
    with pytest.raises(ValueError, match=r"features\.backbone = vgg61: .*vgg16"):
        random_backbone("vgg61")


def test_imagenet_weights_without_a_network_name_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision_images, "get_model", offline)
    with pytest.raises(ValueError, match=r"download the weights of vgg16 .*`features\.weights: PATH`"):
        build_backbone("vgg16", "imagenet", grid=7, seed=0)
    with pytest.raises(ValueError, match="vgg_small has none"):
        build_backbone("vgg_small", "imagenet", grid=7, seed=0)


def test_frames_the_network_cannot_take_are_told() -> None:
    with pytest.raises(ValueError, match=r"features\.image_size = 8 is too small for vgg_small"):
        random_backbone("vgg_small").map_shape(8)


def test_native_grid_is_the_maps_own_side() -> None:
    assert build_backbone("squeezenet1_1", "random", grid="native", seed=0).grid == 13
    backbone = build_backbone("vgg_small", "random", grid="native", seed=0, image_size=64)
    with torch.inference_mode():
        assert backbone(torch.rand(1, 3, 64, 64)).shape == (1, 4, 4, 128)


def test_image_networks_have_a_step_a_frame() -> None:
    backbone = random_backbone("vgg_small")
    assert (backbone.input, backbone.channels_in) == ("image", 3)
    assert backbone.frames_of_clip(5) == backbone.step_frames(5) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("name", "weights", "choices"),
    [
        ("vgg16", "kinetics", "`imagenet`, `random`"),
        ("vgg16", "imagenett", "`imagenet`, `random`"),
        ("mc3_18", "imagenet", "`kinetics`, `random`"),
        ("vgg_small", "hub", "`random`"),
    ],
)
def test_word_for_another_familys_weights_is_one_line_with_the_right_words(name: str, weights: str, choices: str) -> None:
    message = rf"^features\.weights = {weights}: {name} has none; give {choices}, or a path such as \./{weights}$"
    with pytest.raises(ValueError, match=message):
        build_backbone(name, weights, grid=7, seed=0)


def test_words_of_families_are_no_paths() -> None:
    words = [family.pretrained for family in registry.FAMILIES if family.pretrained]
    assert words
    assert [path_of_weights(word) for word in ("random", *words)] == [None] * (len(words) + 1)
    paths = ("./imagenet", "tuned.pth", "weights/vgg16", "/tmp/w", "Tuned")
    assert [str(path_of_weights(path)) for path in paths] == ["imagenet", *paths[1:]]


def test_backbone_that_does_not_take_the_streams_input_is_told() -> None:
    with pytest.raises(ValueError, match=r"^features\.backbone = mc3_18: takes clips, not single images; set `input: clip`"):
        check_name("mc3_18", "image")
    with pytest.raises(ValueError, match=r"^features\.backbone = vgg16: takes single images, not clips; .*mc3_18$"):
        check_name("vgg16", "clip")
    assert check_name("vgg16", "image") is check_name("resnet18")


def test_weights_are_stored_channels_last_without_changing_the_digest() -> None:
    backbone = random_backbone("vgg_small").channels_last()
    assert backbone.extractor.features[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert sha256_of_weights(backbone.extractor.state_dict()) == random_backbone("vgg_small").weights_sha256


def test_digests_of_image_networks_stay_as_they_were() -> None:
    """Cache keys depend on them."""
    known = {"vgg_small": "c746afeb6d332dcc", "resnet18": "a60361976ce6ade9", "squeezenet1_1": "76e51d937ab5d9b8"}
    assert {name: random_backbone(name, seed=3).weights_sha256[:16] for name in known} == known
