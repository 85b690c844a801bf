"""Augmentation: what is off changes no bit, what is on does what it says, each frame by its own amounts, from the seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline_lib.finetune.augmentation import augment, mirror_flows

OFF: dict[str, Any] = {"flip": False, "crop": 0.0, "colour": 0.0}
CHANGES: list[dict[str, Any]] = [{"flip": True}, {"crop": 0.2}, {"colour": 0.5}]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def frames_NCHW() -> Tensor:
    """Return twenty times the same frame, so that frames differ by their augmentation alone."""
    return torch.rand(1, 3, 16, 16, generator=generator(1)).repeat(20, 1, 1, 1)


def test_all_off_leaves_every_bit(frames_NCHW: Tensor) -> None:
    assert torch.equal(augment(frames_NCHW, generator(), **OFF), frames_NCHW)


@pytest.mark.parametrize("change", CHANGES)
def test_each_is_drawn_from_the_generator_alone(frames_NCHW: Tensor, change: dict[str, Any]) -> None:
    first, again, other = (augment(frames_NCHW, generator(seed), **(OFF | change)) for seed in (0, 0, 1))
    assert first.shape == frames_NCHW.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_flip_mirrors_about_half_of_the_frames_exactly(frames_NCHW: Tensor) -> None:
    flipped_NCHW = augment(frames_NCHW, generator(), **(OFF | {"flip": True}))
    is_same = [torch.equal(frame, frames_NCHW[0]) for frame in flipped_NCHW]
    is_mirrored = [torch.equal(frame, frames_NCHW[0].flip(-1)) for frame in flipped_NCHW]
    assert 5 <= sum(is_mirrored) <= 15
    assert sum(is_same) + sum(is_mirrored) == 20


def test_crop_shows_a_window_as_large_and_as_far_off_as_it_says() -> None:
    """Pixels hold their own place, in half sides from the middle, so that a cropped frame tells its window."""
    places = (torch.arange(40) + 0.5) / 20 - 1
    frames_NCHW = torch.stack([places.expand(40, 40), places[:, None].expand(40, 40)]).repeat(200, 1, 1, 1)
    cropped_NCHW = augment(frames_NCHW, generator(), **(OFF | {"crop": 0.2}))
    middle_NCHW = cropped_NCHW[:, :, 10:30, 10:30]
    zoom_N = (middle_NCHW[:, 0, :, -1] - middle_NCHW[:, 0, :, 0]).mean(dim=1) / (19 / 20)
    shift_NC = torch.stack([middle_NCHW[:, 0].mean(dim=(1, 2)), middle_NCHW[:, 1].mean(dim=(1, 2))], dim=1)
    assert zoom_N.min() == pytest.approx(0.8, abs=0.02)
    assert zoom_N.max() == pytest.approx(1.2, abs=0.02)
    assert shift_NC.abs().amax(dim=0).tolist() == pytest.approx([0.2, 0.2], abs=0.02)
    assert torch.corrcoef(torch.cat([zoom_N[:, None], shift_NC], dim=1).T).fill_diagonal_(0).abs().max() < 0.25


def test_crop_larger_than_the_frame_mirrors_it_at_the_edge(frames_NCHW: Tensor) -> None:
    cropped_NCHW = augment(frames_NCHW, generator(), **(OFF | {"crop": 0.5}))
    assert cropped_NCHW.min() >= frames_NCHW.min() - 1e-6
    assert cropped_NCHW.max() <= frames_NCHW.max() + 1e-6


def test_colour_scales_and_shifts_each_channel_by_its_own_amount(frames_NCHW: Tensor) -> None:
    frames_NCHW = frames_NCHW.repeat(20, 1, 1, 1)
    changed_NCHW = augment(frames_NCHW, generator(), **(OFF | {"colour": 0.5}))
    before_NCL, after_NCL = frames_NCHW.flatten(2), changed_NCHW.flatten(2)
    scale_NC = after_NCL.std(dim=2) / before_NCL.std(dim=2)
    offset_NC = after_NCL.mean(dim=2) - scale_NC * before_NCL.mean(dim=2)
    for amount_NC, low, high in ((scale_NC, 0.5, 1.5), (offset_NC, -0.5, 0.5)):
        assert amount_NC.min() == pytest.approx(low, abs=0.02)
        assert amount_NC.max() == pytest.approx(high, abs=0.02)
        assert torch.corrcoef(amount_NC.T).fill_diagonal_(0).abs().max() < 0.25
    torch.testing.assert_close(after_NCL, before_NCL * scale_NC[..., None] + offset_NC[..., None])


@pytest.mark.parametrize("change", CHANGES)
def test_frames_of_a_clip_are_changed_alike(frames_NCHW: Tensor, change: dict[str, Any]) -> None:
    clips_NCTHW = frames_NCHW[:, :, None].expand(-1, -1, 4, -1, -1)
    changed_NCTHW = augment(clips_NCTHW, generator(), **(OFF | change))
    frames_NCHW = augment(frames_NCHW, generator(), **(OFF | change))
    torch.testing.assert_close(changed_NCTHW, frames_NCHW[:, :, None].expand_as(changed_NCTHW))


def test_about_half_of_the_stacks_are_mirrored_with_the_sign_of_x() -> None:
    flow_LCHW = torch.randint(1, 256, (3, 2, 8, 8), generator=generator(1)).to(torch.uint8)
    mirrored_LCHW = flow_LCHW.flip(-1)
    mirrored_LCHW[:, 0] = (256 - mirrored_LCHW[:, 0].int()).to(torch.uint8)
    flows_NLCHW = mirror_flows(flow_LCHW.repeat(20, 1, 1, 1, 1), generator())
    assert flows_NLCHW.dtype == torch.uint8
    is_same = [torch.equal(flow, flow_LCHW) for flow in flows_NLCHW]
    is_mirrored = [torch.equal(flow, mirrored_LCHW) for flow in flows_NLCHW]
    assert 5 <= sum(is_mirrored) <= 15
    assert sum(is_same) + sum(is_mirrored) == 20
