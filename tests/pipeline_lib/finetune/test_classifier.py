"""The classifier: what is frozen has no gradient, takes no split in the backward pass, and is in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.finetune.blocks import find_blocks, last_blocks
from pipeline_lib.finetune.classifier import FrameClassifier

pytestmark = pytest.mark.usefixtures("single_thread")


def classifier(blocks: int = 1) -> FrameClassifier:
    backbone = build_backbone("vgg_small", "random", grid=2, seed=0)
    return FrameClassifier(backbone, last_blocks(backbone, blocks), 2, 0.5)


def normalisations(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_only_the_last_blocks_and_the_head_get_gradients() -> None:
    backbone = build_backbone("vgg_small", "random", grid=2, seed=0)
    tuned = [weight for block in find_blocks(backbone)[-2:] for module in block for weight in module.parameters()]
    model = FrameClassifier(backbone, last_blocks(backbone, 2), 2, 0.5)
    model.train()(torch.rand(2, 3, 32, 32)).sum().backward()
    with_gradient = {id(weight) for weight in model.parameters() if weight.grad is not None}
    assert with_gradient == {id(weight) for weight in [*tuned, *model.head.parameters()]}
    assert len(tuned) == 12


def test_frozen_beginning_leaves_no_trace_for_the_backward_pass() -> None:
    model = classifier().train()
    seen: dict[int, Tensor] = {}
    for number, module in enumerate(model.extractor.features):
        module.register_forward_hook(lambda module, inputs, output, number=number: seen.update({number: output}))
    model(torch.rand(2, 3, 32, 32))
    first_tuned = list(model.extractor.features).index(model.tuned[0])
    assert not any(seen[number].requires_grad for number in range(first_tuned))
    assert seen[first_tuned].requires_grad


def test_frozen_normalisation_keeps_its_statistics_and_tuned_normalisation_learns_them() -> None:
    model = classifier().train()
    before = [module.running_mean.clone() for module in normalisations(model)]
    model(torch.rand(4, 3, 32, 32))
    kept = [torch.equal(module.running_mean, mean) for module, mean in zip(normalisations(model), before, strict=True)]
    assert kept == [True] * 4 + [False] * 2


def test_features_of_clips_are_means_over_steps_and_cells() -> None:
    backbone = build_backbone("vgg_small", "random", grid=2, seed=0)
    backbone.extractor = nn.Identity()
    clips_NCTHW = torch.rand(2, 3, 4, 5, 6)
    torch.testing.assert_close(FrameClassifier(backbone, [], 2, 0.5).features(clips_NCTHW), clips_NCTHW.flatten(2).mean(dim=2))


def test_evaluation_mode_reaches_everything() -> None:
    model = classifier(4).train()
    assert any(module.training for module in model.extractor.modules())
    model.eval()
    assert not any(module.training for module in model.modules())
