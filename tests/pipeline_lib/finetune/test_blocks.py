"""Blocks are what works at one resolution, for every family of networks, whatever the size of the frames."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

from pipeline_lib.backbones.build import Backbone, build_backbone
from pipeline_lib.finetune.blocks import find_blocks, last_blocks

pytestmark = pytest.mark.usefixtures("single_thread")

BLOCKS = [
    ("vgg_small", 4),
    ("alexnet", 3),
    ("densenet121", 5),
    ("efficientnet_b0", 5),
    ("googlenet", 5),
    ("mnasnet0_5", 5),
    ("mobilenet_v3_small", 5),
    ("regnet_y_400mf", 5),
    ("resnet18", 5),
    ("shufflenet_v2_x0_5", 4),
    ("squeezenet1_1", 4),
    ("convnext_tiny", 4),
    ("inception_v3", 5),
    ("maxvit_t", 5),
    ("swin_t", 4),
    ("swin_v2_t", 4),
]


@pytest.fixture(scope="module", autouse=True)
def _no_random_numbers() -> Iterator[None]:
    """Leave weights as they are allocated: drawing millions takes most of the time, and blocks do not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
            patch.setattr(nn.init, name, lambda weight, *_, **__: weight)
        yield


def random_backbone(name: str) -> Backbone:
    return build_backbone(name, "random", grid=7, seed=0)


def names_of_convolutions(backbone: Backbone, modules: list[nn.Module]) -> list[str]:
    names = {module: name for name, module in backbone.extractor.named_modules()}
    return [names[module] for module in modules if isinstance(module, nn.Conv2d)]


@pytest.mark.integration
@pytest.mark.parametrize(("name", "num_blocks"), BLOCKS)
def test_every_family_falls_into_blocks_that_hold_all_its_weights(name: str, num_blocks: int) -> None:
    backbone = random_backbone(name)
    blocks = find_blocks(backbone)
    assert len(blocks) == num_blocks
    in_blocks = [id(weight) for block in blocks for module in block for weight in module.parameters()]
    assert in_blocks == [id(weight) for weight in backbone.extractor.parameters()]


def test_vgg16_has_five_blocks_of_the_right_convolutions() -> None:
    backbone = random_backbone("vgg16")
    names = [names_of_convolutions(backbone, block) for block in find_blocks(backbone)]
    numbers = [(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]
    assert names == [[f"features.{number}" for number in block] for block in numbers]


def test_block_of_vgg_small_keeps_the_normalisation_that_follows_its_pooling() -> None:
    kinds = [[type(module).__name__ for module in block] for block in find_blocks(random_backbone("vgg_small"))]
    assert kinds[0] == ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert kinds[3] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]


def test_block_of_a_residual_network_is_a_stage() -> None:
    backbone = random_backbone("resnet18")
    layers = [getattr(backbone.extractor, f"layer{number}") for number in (1, 2, 3, 4)]
    assert find_blocks(backbone)[1:] == [list(layer) for layer in layers]


def test_every_layer_of_a_vision_transformer_is_a_block() -> None:
    backbone = random_backbone("vit_b_16")
    encoder = backbone.extractor.encoder
    blocks = find_blocks(backbone)
    assert [block[-1] for block in blocks[:-1]] == list(encoder.layers)[:-1]
    assert last_blocks(backbone, 1) == [encoder.layers[-1], encoder.ln]
    assert last_blocks(backbone, 12) == [backbone.extractor]


def test_last_blocks_are_counted_from_the_end_and_all_is_the_whole_extractor() -> None:
    backbone = random_backbone("squeezenet1_1")
    assert last_blocks(backbone, 1) == list(backbone.extractor.features[9:])
    assert last_blocks(backbone, 2) == list(backbone.extractor.features[6:])
    assert last_blocks(backbone, 4) == last_blocks(backbone, "all") == [backbone.extractor]


def test_more_blocks_than_there_are_is_one_line_with_their_number() -> None:
    with pytest.raises(ValueError, match=r"^finetune\.blocks = 5: squeezenet1_1 has 4 blocks; give 1 to 4, or `all`$"):
        last_blocks(random_backbone("squeezenet1_1"), 5)
