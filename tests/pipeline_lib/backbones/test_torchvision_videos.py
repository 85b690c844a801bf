"""torchvision's video networks: maps, frames that they take, and frames in the middle of their steps."""

from __future__ import annotations

import functools
import urllib.error
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from pipeline_lib.backbones import torchvision_videos
from pipeline_lib.backbones.build import Backbone, build_backbone, on_meta
from pipeline_lib.backbones.fusing import fuse
from pipeline_lib.backbones.torchvision_videos import TIMINGS
from pipeline_lib.finetune.blocks import find_blocks, last_blocks

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.slow]

NETWORKS = [
    ("mc3_18", (512, 7, 7), tuple(range(30))),
    ("r3d_18", (512, 7, 7), (0, 8, 16, 24)),
    ("r2plus1d_18", (512, 7, 7), (0, 8, 16, 24)),
    ("s3d", (1024, 7, 7), (2, 10, 18, 26)),
    ("mvit_v1_b", (768, 7, 7), (0, 4, 8, 12, 16, 20, 24, 28)),
    ("mvit_v2_s", (768, 7, 7), (0, 4, 8, 12, 16, 20, 24, 28)),
    ("swin3d_t", (768, 7, 7), tuple(range(0, 30, 2))),
    ("swin3d_s", (768, 7, 7), tuple(range(0, 30, 2))),
    ("swin3d_b", (1024, 7, 7), tuple(range(0, 30, 2))),
]
LARGE = ("mvit_v1_b", "mvit_v2_s", "swin3d_s", "swin3d_b")
BLOCKS = {"s3d": 5, "mvit_v1_b": 16, "mvit_v2_s": 16}


@functools.cache
def random_backbone(name: str, *, grid: int = 7) -> Backbone:
    """Return a network that tests share and do not change."""
    return build_backbone(name, "random", grid=grid, seed=0)


def num_steps(backbone: Backbone, num_frames: int) -> int:
    frames = len(backbone.frames_of_clip(num_frames))
    clips_NCTHW = torch.empty(1, 3, frames, backbone.own_size, backbone.own_size, device="meta")
    return on_meta(backbone.extractor, clips_NCTHW).shape[2]


def test_every_name_is_here() -> None:
    assert {name for name, *_ in NETWORKS} == TIMINGS.keys()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "shape", "middles"),
    [pytest.param(*row, marks=pytest.mark.slow if row[0] in LARGE else ()) for row in NETWORKS],
)
def test_every_network_says_its_shape_steps_and_blocks(
    name: str, shape: tuple[int, int, int], middles: tuple[int, ...]
) -> None:
    backbone = build_backbone(name, "random", grid="native", seed=0)
    assert (backbone.input, backbone.grid) == ("clip", 7)
    assert backbone.map_shape(backbone.own_size, num_frames=30) == shape
    assert backbone.step_frames(30) == middles
    for num_frames in (17, 28, 45):
        steps = backbone.step_frames(num_frames)
        assert len(steps) == num_steps(backbone, num_frames)
        assert list(steps) == sorted(set(steps))
        assert steps[-1] < num_frames
    blocks = find_blocks(backbone)
    assert len(blocks) == BLOCKS.get(name, 4)
    assert {id(weight) for block in blocks for module in block for weight in module.parameters()} == {
        id(weight) for weight in backbone.extractor.parameters()
    }


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "size", "num_frames"),
    [
        ("mc3_18", 48, 5),
        ("r3d_18", 48, 17),
        ("r2plus1d_18", 48, 17),
        ("s3d", 64, 14),
        ("swin3d_t", 64, 5),
        pytest.param("swin3d_s", 64, 4, marks=pytest.mark.slow),
        pytest.param("swin3d_b", 64, 4, marks=pytest.mark.slow),
        pytest.param("mvit_v1_b", 224, 30, marks=pytest.mark.slow),
        pytest.param("mvit_v2_s", 224, 30, marks=pytest.mark.slow),
    ],
)
def test_network_gives_a_map_a_step_channels_last_on_the_grid(name: str, size: int, num_frames: int) -> None:
    backbone = random_backbone(name, grid=2)
    frames = torch.rand(1, 3, num_frames, size, size)
    with torch.inference_mode():
        features_NSKKD = backbone(frames[:, :, backbone.frames_of_clip(num_frames)])
    assert features_NSKKD.shape == (1, len(backbone.step_frames(num_frames)), 2, 2, backbone.channels)
    assert features_NSKKD.isfinite().all()
    assert not backbone.training


@pytest.mark.integration
@pytest.mark.parametrize("name", ["mc3_18", "r3d_18", "s3d"])
def test_step_sees_most_of_the_frame_that_is_called_its_middle(name: str) -> None:
    """The centre of mass of the gradient over time, where the clip's borders are out of reach."""
    backbone = random_backbone(name, grid=2)
    clips_NCTHW = torch.rand(1, 3, 64, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    middles = backbone.step_frames(64)
    step = len(middles) // 2
    backbone.extractor(clips_NCTHW)[:, :, step].square().sum().backward()
    weight_T = clips_NCTHW.grad.square().sum(dim=(0, 1, 3, 4))
    centre = (weight_T * torch.arange(64)).sum() / weight_T.sum()
    assert centre.item() == pytest.approx(middles[step], abs=1.5)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["mc3_18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin3d_t", "s3d"))])
def test_map_leads_to_the_same_classes_as_the_whole_network(name: str, tmp_path: Path) -> None:
    network = get_model(name, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(name, str(tmp_path / "weights.pth"), grid="native", seed=1)
    seen: list[torch.Tensor] = []
    head = next(getattr(network, name) for name in ("fc", "classifier", "head") if hasattr(network, name))
    head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(1)))
    size = 224 if name == "s3d" else 64
    clips_NCTHW = torch.rand(1, 3, 16 if name == "s3d" else 4, size, size)
    with torch.inference_mode():
        network(clips_NCTHW)
        pooled_ND = backbone.extractor(clips_NCTHW).mean(dim=(2, 3, 4))
    torch.testing.assert_close(pooled_ND, seen[0], rtol=1e-4, atol=1e-5)


def test_preprocessing_is_torchvisions_for_the_network() -> None:
    backbone = random_backbone("mc3_18")
    assert backbone.preprocessing.mean == pytest.approx((0.432, 0.395, 0.376), abs=1e-3)
    assert backbone.preprocessing.std == pytest.approx((0.228, 0.221, 0.217), abs=1e-3)
    assert (backbone.own_size, backbone.fixed_size, backbone.weights_description) == (112, None, "random: seed 0")


@pytest.mark.parametrize("name", sorted(TIMINGS))
def test_middles_increase_for_every_length_of_clip(name: str) -> None:
    timing = TIMINGS[name]
    for num_frames in range(timing.shortest, 130):
        middles = timing.steps(num_frames)
        assert list(middles) == sorted(set(middles))
        assert 0 <= middles[0] <= middles[-1] < num_frames


def test_mvit_takes_every_second_frame_and_repeats_the_last() -> None:
    timing = TIMINGS["mvit_v2_s"]
    assert timing.frames(30) == (*range(0, 30, 2), 28)
    assert timing.frames(16) == tuple(range(16))
    assert timing.frames(60) == (*range(0, 60, 4), 56)
    assert timing.frames(20) == (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18)


def test_clip_shorter_than_the_window_is_told() -> None:
    backbone = random_backbone("s3d")
    for call in (backbone.frames_of_clip, backbone.step_frames, lambda number: backbone.map_shape(224, num_frames=number)):
        with pytest.raises(ValueError, match=r"^chunk\.frames = 13: s3d needs clips of at least 14 frames"):
            call(13)


def test_frames_too_small_are_told() -> None:
    with pytest.raises(ValueError, match=r"^features\.image_size = 8 is too small for s3d"):
        random_backbone("s3d").map_shape(8)


def test_weights_of_another_network_are_told(tmp_path: Path) -> None:
    torch.save(random_backbone("mc3_18").extractor.state_dict(), tmp_path / "mc3.pth")
    with pytest.raises(ValueError, match=r"mc3\.pth does not fit r3d_18: \d+ of \d+ weights"):
        build_backbone("r3d_18", str(tmp_path / "mc3.pth"), grid=7, seed=0)
    loaded = build_backbone("mc3_18", str(tmp_path / "mc3.pth"), grid=7, seed=1)
    assert loaded.weights_sha256 == random_backbone("mc3_18").weights_sha256


def test_kinetics_weights_that_cannot_be_downloaded_name_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision_videos, "get_model", offline)
    with pytest.raises(ValueError, match=r"^features\.weights = kinetics: .* weights of mc3_18 .*`features\.weights: PATH`"):
        build_backbone("mc3_18", "kinetics", grid=7, seed=0)


def test_last_block_of_a_residual_network_is_its_last_stage() -> None:
    backbone = random_backbone("mc3_18")
    assert last_blocks(backbone, 1) == list(backbone.extractor.layer4)
    assert last_blocks(backbone, "all") == [backbone.extractor]


def test_fusing_leaves_3d_layers_alone() -> None:
    backbone = random_backbone("mc3_18")
    before = [type(module) for module in backbone.modules()]
    assert [type(module) for module in fuse(backbone, torch.float16).modules()] == before


def test_channels_last_gives_the_same_map() -> None:
    backbone = build_backbone("mc3_18", "random", grid=2, seed=0)
    clips_NCTHW = torch.rand(1, 3, 4, 32, 32)
    with torch.inference_mode():
        wanted = backbone(clips_NCTHW)
        found = backbone.channels_last()(clips_NCTHW)
    assert backbone.extractor.stem[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
