"""The linear layer that tuning starts from: what logistic regression finds, penalised as validation wants it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline_lib.finetune.head import PENALTIES, fit_head

pytestmark = pytest.mark.usefixtures("single_thread")


def clusters(num_frames: int, *, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return features_ND of three classes, whose channels have very different scales and offsets, and labels_N."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(num_frames) % 3
    features_ND = torch.randn(num_frames, 6, generator=generator) * noise
    features_ND[torch.arange(num_frames), labels_N] += 3
    return features_ND * torch.tensor([1e-2, 1, 1e2, 1, 1, 1]) + 5, labels_N


def accuracy(head: nn.Linear, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return (head(data[0]).argmax(dim=1) == data[1]).double().mean().item()


def test_tells_classes_apart_that_can_be_whatever_the_scales() -> None:
    head = nn.Linear(6, 3)
    fit_head(head, clusters(300, seed=0), clusters(60, seed=1))
    assert accuracy(head, clusters(300, seed=2)) > 0.9


def test_does_not_depend_on_where_the_layer_began() -> None:
    first, second = nn.Linear(6, 3), nn.Linear(6, 3)
    for head in (first, second):
        fit_head(head, clusters(90, seed=0), clusters(30, seed=1))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_is_at_the_minimum_for_one_of_the_penalties() -> None:
    """Where the loss is lowest its gradient, taken by the standardised weights, is minus the penalty's."""
    features_ND, labels_N = clusters(120, seed=0)
    head = nn.Linear(6, 3)
    fit_head(head, (features_ND, labels_N), clusters(30, seed=1))
    scale_D = features_ND.double().std(dim=0)
    standardised_ND = (features_ND.double() - features_ND.double().mean(dim=0)) / scale_D
    weight_CD = (head.weight.detach() * scale_D).requires_grad_()
    bias_C = (head.bias + head.weight @ features_ND.mean(dim=0)).double().detach().requires_grad_()
    nn.functional.cross_entropy(standardised_ND @ weight_CD.T + bias_C, labels_N).backward()
    assert weight_CD.grad is not None
    assert bias_C.grad is not None
    misses = [(weight_CD.grad + penalty * weight_CD).abs().max().item() for penalty in PENALTIES]
    assert min(misses) < 1e-3
    assert bias_C.grad.abs().max() < 1e-3


def test_validation_decides_how_sure_it_is() -> None:
    """Where labels of validation frames are noise, nothing is better than to know nothing."""
    train = clusters(90, seed=0)
    noise = clusters(90, seed=1)[0], torch.randint(3, (90,), generator=torch.Generator().manual_seed(0))
    sure, unsure = nn.Linear(6, 3), nn.Linear(6, 3)
    fit_head(sure, train, clusters(90, seed=1))
    fit_head(unsure, train, noise)
    with torch.no_grad():
        assert sure(train[0]).softmax(dim=1).amax(dim=1).mean() > 0.9
        assert unsure(train[0]).softmax(dim=1).amax(dim=1).mean() < 0.5


def test_channel_that_is_always_the_same_does_no_harm() -> None:
    features_ND, labels_N = clusters(90, seed=0)
    features_ND[:, 5] = 7.0
    head = nn.Linear(6, 3)
    fit_head(head, (features_ND, labels_N), (features_ND, labels_N))
    assert head.weight.isfinite().all()
    assert accuracy(head, (features_ND, labels_N)) > 0.9
