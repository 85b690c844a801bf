"""The loss: valid frames only, and a penalty that means the same for every size."""

import math

import numpy as np
import pytest
import torch

from pipeline_lib.train.loss import coverage_penalty, frame_cross_entropy


def test_cross_entropy_is_the_mean_over_all_valid_frames_of_the_batch():
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels, valid_frames = torch.tensor([2, 0]), torch.tensor([4, 1])
    probability = logits.softmax(dim=2).numpy()
    wanted = -np.log([*probability[0, :, 2], probability[1, 0, 0]]).mean()
    assert frame_cross_entropy(logits, labels, valid_frames).item() == pytest.approx(wanted, abs=1e-6)
    logits[1, 1:] = 1e9
    assert frame_cross_entropy(logits, labels, valid_frames).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("num_frames", "valid", "grid"), [(30, 30, 7), (30, 8, 7), (5, 3, 2)])
def test_even_attention_costs_nothing_and_a_fixed_gaze_the_most(num_frames, valid, grid):
    even = torch.full((2, num_frames, grid, grid), 1 / grid**2)
    fixed = torch.zeros(2, num_frames, grid, grid)
    fixed[:, :, 0, 1] = 1
    valid_frames = torch.tensor([valid, valid])
    assert coverage_penalty(even, valid_frames).item() == pytest.approx(0, abs=1e-9)
    assert coverage_penalty(fixed, valid_frames).item() == pytest.approx(grid**2 - 1, rel=1e-5)


def test_a_gaze_that_visits_every_cell_costs_nothing():
    attention = torch.eye(4).reshape(1, 4, 2, 2)
    assert coverage_penalty(attention, torch.tensor([4])).item() == 0


def test_penalty_ignores_padding_and_differs_from_the_articles_by_a_factor():
    attention = torch.rand(3, 30, 7, 7, generator=torch.Generator().manual_seed(0)).flatten(2).softmax(2).view(3, 30, 7, 7)
    valid_frames = torch.tensor([30, 30, 30])
    reachable = 30 / 49
    per_cell = (reachable - attention.sum(dim=1)).square().mean()  # Sharma's code with a target that can be reached
    assert coverage_penalty(attention, valid_frames).item() == pytest.approx(per_cell.item() / reachable**2, rel=1e-4)
    padded = torch.cat((attention, torch.ones(3, 5, 7, 7)), dim=1)
    assert coverage_penalty(padded, valid_frames).item() == pytest.approx(coverage_penalty(attention, valid_frames).item())
    assert not math.isclose(coverage_penalty(padded, valid_frames + 5).item(), per_cell.item() / reachable**2)
