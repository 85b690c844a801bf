"""The loss: valid frames only, and a penalty that means the same for every size."""

import numpy as np
import pytest
import torch

from pipeline_lib.train.loss import calibrated_cross_entropy, coverage_penalty, frame_cross_entropy


def test_cross_entropy_is_the_mean_over_all_valid_frames_of_the_batch():
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels, valid_frames = torch.tensor([2, 0]), torch.tensor([4, 1])
    probability = logits.softmax(dim=2).numpy()
    wanted = -np.log([*probability[0, :, 2], probability[1, 0, 0]]).mean()
    assert frame_cross_entropy(logits, labels, valid_frames).item() == pytest.approx(wanted, abs=1e-6)
    logits[1, 1:] = 1e9
    assert frame_cross_entropy(logits, labels, valid_frames).item() == pytest.approx(wanted, abs=1e-6)


def test_calibrated_cross_entropy_does_not_see_how_sure_a_model_is():
    logits = torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0))
    labels, valid_frames = logits[:, 0].argmax(dim=1), torch.full((40,), 3)
    wanted = min(frame_cross_entropy(t * logits, labels, valid_frames).item() for t in np.linspace(0, 4, 801))
    for factor in (0.2, 1, 20):
        assert calibrated_cross_entropy(factor * logits, labels, valid_frames) == pytest.approx(wanted, abs=1e-4), factor


def test_logits_that_tell_the_wrong_class_are_worth_as_much_as_none():
    wrong = 9.0 * torch.nn.functional.one_hot(torch.tensor([[1, 1], [0, 0]]), 2).float()
    assert calibrated_cross_entropy(wrong, torch.tensor([0, 1]), torch.tensor([2, 2])) == pytest.approx(np.log(2), abs=0.01)
    assert np.isnan(calibrated_cross_entropy(wrong * torch.nan, torch.tensor([0, 1]), torch.tensor([2, 2])))


@pytest.mark.parametrize(("num_frames", "valid", "grid"), [(30, 30, 7), (30, 8, 7), (5, 3, 2)])
def test_even_attention_costs_nothing_and_a_fixed_gaze_the_most(num_frames, valid, grid):
    even = torch.full((2, num_frames, grid, grid), 1 / grid**2)
    fixed = torch.zeros(2, num_frames, grid, grid)
    fixed[:, :, 0, 1] = 1
    valid_frames = torch.tensor([valid, valid])
    assert coverage_penalty(even, valid_frames).item() == pytest.approx(0, abs=1e-9)
    assert coverage_penalty(fixed, valid_frames).item() == pytest.approx(valid * (1 - 1 / grid**2), rel=1e-5)


def test_a_gaze_that_visits_every_cell_costs_nothing():
    attention = torch.eye(4).reshape(1, 4, 2, 2)
    assert coverage_penalty(attention, torch.tensor([4])).item() == 0


def some_attention(*size):
    scores = torch.randn(*size, generator=torch.Generator().manual_seed(0))
    return (2 * scores).flatten(2).softmax(2).view(size).requires_grad_()


def test_penalty_is_that_of_the_papers_up_to_a_constant():
    attention = some_attention(3, 30, 7, 7)
    papers = (1 - attention.sum(dim=1)).square().sum(dim=(1, 2)).mean() / 30  # Xu et al. 2015, over T
    constant = 49 * (1 - 30 / 49) ** 2 / 30
    assert coverage_penalty(attention, torch.tensor([30, 30, 30])).item() == pytest.approx(papers.item() - constant, rel=1e-4)


def test_the_tutorials_code_weighs_the_penalty_256_times():
    """Its formula, slip included, has the gradient of ours times B^2."""
    scores = torch.randn(16, 30, 49, generator=torch.Generator().manual_seed(0)).requires_grad_()
    attention = scores.softmax(2).view(16, 30, 7, 7)
    theirs = (1 - attention.sum(dim=1)).square().sum() / 30 * 16
    ours = 256 * coverage_penalty(attention, torch.full((16,), 30))
    gradients = [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (theirs, ours)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_penalty_ignores_padding_and_clips_that_fill_up_a_batch():
    attention, valid_frames = some_attention(3, 30, 7, 7).detach(), torch.tensor([30, 30, 30])
    padded = torch.cat((attention, torch.ones(3, 5, 7, 7)), dim=1)
    wanted = coverage_penalty(attention, valid_frames).item()
    assert coverage_penalty(padded, valid_frames).item() == pytest.approx(wanted)
    assert coverage_penalty(padded, valid_frames + 5).item() > 2 * wanted
    filled = torch.cat((attention, torch.ones(2, 30, 7, 7)))
    assert coverage_penalty(filled, torch.tensor([30, 30, 30, 0, 0])).item() == pytest.approx(wanted)


def test_cross_entropy_ignores_clips_that_fill_up_a_batch():
    logits = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 1])
    alone = frame_cross_entropy(logits[:2], labels[:2], torch.tensor([4, 1]))
    torch.testing.assert_close(frame_cross_entropy(logits, labels, torch.tensor([4, 1, 0])), alone)
