"""C3D: its layers, windows and steps."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_lib.backbones.build import Backbone, build_backbone, on_meta
from pipeline_lib.errors import UserError
from pipeline_lib.finetune.blocks import find_blocks

pytestmark = pytest.mark.usefixtures("single_thread")


@functools.cache
def random_backbone() -> Backbone:
    """Return a network that tests share and do not change."""
    return build_backbone("c3d", "random", grid="native", seed=0)


def published(state: dict[str, torch.Tensor], clip_NCTHW: torch.Tensor) -> torch.Tensor:
    """Return the map after conv5b of one window, written from the paper's table of layers."""
    map_ = clip_NCTHW
    for name, pooling in (
        ("conv1", (1, 2, 2)),
        ("conv2", (2, 2, 2)),
        ("conv3a", None),
        ("conv3b", (2, 2, 2)),
        ("conv4a", None),
        ("conv4b", (2, 2, 2)),
        ("conv5a", None),
        ("conv5b", None),
    ):
        map_ = functional.relu(functional.conv3d(map_, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
        map_ = functional.max_pool3d(map_, pooling, pooling) if pooling else map_
    return map_


def test_shape_steps_and_blocks() -> None:
    backbone = random_backbone()
    assert (backbone.input, backbone.grid, backbone.channels) == ("clip", 7, 512)
    assert backbone.map_shape(112, num_frames=30) == (512, 7, 7)
    assert backbone.step_frames(30) == (3, 11, 19, 27)
    assert backbone.frames_of_clip(30) == (*range(30), 29, 29)
    assert [len(block) for block in find_blocks(backbone)] == [3, 3, 5, 5, 4]
    assert sum(weight.numel() for weight in backbone.parameters()) == 27_655_936


def test_every_length_has_as_many_increasing_steps_as_the_map() -> None:
    backbone = random_backbone()
    for num_frames in range(1, 70):
        middles = backbone.step_frames(num_frames)
        assert list(middles) == sorted(set(middles))
        if num_frames % 9 == 0:
            clips_NCTHW = torch.empty(1, 3, len(backbone.frames_of_clip(num_frames)), 112, 112, device="meta")
            assert on_meta(backbone.extractor, clips_NCTHW).shape[2] == len(middles)


@pytest.mark.integration
def test_windows_are_the_papers_network_side_by_side(tmp_path: Path) -> None:
    state = random_backbone().extractor.state_dict()
    classifier = {"fc8.weight": torch.zeros(2, 2)}
    torch.save(state | classifier, tmp_path / "c3d.pth")
    backbone = build_backbone("c3d", str(tmp_path / "c3d.pth"), grid="native", seed=1, image_size=32)
    clips_NCTHW = torch.rand(1, 3, 24, 32, 32)
    with torch.inference_mode():
        found_NDSHW = backbone.extractor(clips_NCTHW)
        wanted = [published(state, clips_NCTHW[:, :, :16]), published(state, clips_NCTHW[:, :, 16:])]
        torch.testing.assert_close(found_NDSHW, torch.cat(wanted, dim=2), rtol=1e-4, atol=1e-6)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not fit c3d: 16 of 16 weights are missing"):
        build_backbone("c3d", str(tmp_path / "other.pth"), grid=7, seed=0)


def test_pixels_are_from_0_to_255_less_the_mean_colour() -> None:
    mean, std = random_backbone().preprocessing
    assert [round(255 * value) for value in mean] == [104, 117, 128]
    assert std == pytest.approx((1 / 255,) * 3)
