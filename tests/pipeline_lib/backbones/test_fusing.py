"""Fused backbones compute what they are made from. Most of it needs a GPU; what does not is tried here too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.backbones.fusing import ConvReLU, Halve, _halve_without_triton, fuse

pytestmark = pytest.mark.integration

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def kinds(network: nn.Module) -> list[type]:
    return [type(module) for module in network.modules() if not list(module.children())]


def test_pairs_are_found_and_the_network_itself_stays_as_it_was() -> None:
    backbone = build_backbone("vgg16", "random", grid=7, seed=0)
    before = kinds(backbone)
    fused = kinds(fuse(backbone, torch.float32))
    assert (fused.count(ConvReLU), fused.count(Halve)) == (13, 5)
    assert nn.Conv2d not in fused
    assert nn.ReLU not in fused
    assert kinds(backbone) == before


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()],
        [nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1), nn.ReLU()],
        [nn.MaxPool2d(3, 2)],
        [nn.MaxPool2d(2, ceil_mode=True)],
        [nn.MaxPool2d(2, padding=1)],
        [nn.MaxPool2d(2, stride=1)],
    ],
)
def test_what_is_something_else_is_left_alone(layers: list[nn.Module]) -> None:
    assert kinds(fuse(nn.Sequential(*layers), torch.float32)) == [type(layer) for layer in layers]


def test_halving_is_max_pooling() -> None:
    maps_NDHW = torch.randn(2, 5, 8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_halve_without_triton(maps_NDHW), nn.functional.max_pool2d(maps_NDHW, 2))


@on_gpu
@pytest.mark.parametrize("size", [(2, 8, 6, 4), (3, 5, 7, 9), (1, 64, 2, 2), (4, 512, 14, 14)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_halving_on_a_gpu_is_max_pooling(size: tuple[int, ...], dtype: torch.dtype) -> None:
    maps_NDHW = torch.randn(size, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    maps_NDHW[0, 0, 0, 0] = torch.nan
    wanted = nn.functional.max_pool2d(maps_NDHW, 2)
    torch.testing.assert_close(Halve()(maps_NDHW), wanted, rtol=0, atol=0, equal_nan=True)


@on_gpu
@pytest.mark.parametrize("name", ["vgg16", "vgg11_bn", "squeezenet1_1", "resnet18", "alexnet", "vgg_small"])
def test_a_fused_backbone_computes_the_same(name: str) -> None:
    backbone = build_backbone(name, "random", grid=7, seed=0).cuda().to(memory_format=torch.channels_last)
    frames_NCHW = torch.randn(3, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted, fused = backbone(frames_NCHW), fuse(backbone, torch.float32)(frames_NCHW)
        with torch.autocast("cuda", torch.float16):
            half = fuse(backbone, torch.float16)(frames_NCHW)
    for features, limit in ((fused, 2e-3), (half, 1e-2)):
        error_N = (features.float() - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
        assert error_N.max() < limit
