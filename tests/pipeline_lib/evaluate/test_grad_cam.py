"""Grad-CAM against finite differences in float64, and in cases whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline_lib.evaluate.explainers import EXPLAINERS, explain
from pipeline_lib.evaluate.grad_cam import grad_cam
from pipeline_lib.networks.registry import MODELS, build_model
from pipeline_lib.params import TrainParams
from pipeline_lib.training.batches import Batch
from tests.pipeline_lib.networks.sizes import split_channels

CLIPS, STEPS, GRID, CHANNELS, CLASSES = 2, 3, 3, 6, 4
VALID = torch.tensor([3, 2])
SHIFT = 1e-5

PARAMS = TrainParams(alstm_units=6, conv_alstm_units=4, head_channels=4, uniform_start=False)


def make_model(name):
    torch.manual_seed(0)
    model = build_model(PARAMS.of(name), channels=split_channels(name, CHANNELS), grid=GRID, num_classes=CLASSES)
    return model.double().eval()


def make_features(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(CLIPS, STEPS, GRID, GRID, CHANNELS)))


def clip_scores(model, features_BTKKD):
    """Return score_BC, logits less their mean, and the class_B with the highest probability; with loops instead of masks."""
    with torch.no_grad():
        logits_BTC = model(features_BTKKD, VALID).logits_BTC.numpy()
    valid = [logits_TC[:count] for logits_TC, count in zip(logits_BTC, VALID.tolist(), strict=True)]
    score_BC = np.stack([(logits_TC - logits_TC.mean(axis=1, keepdims=True)).mean(axis=0) for logits_TC in valid])
    probability_BC = np.stack([(np.exp(one) / np.exp(one).sum(axis=1, keepdims=True)).mean(axis=0) for one in valid])
    return score_BC, probability_BC.argmax(axis=1)


def reference(model, features_BTKKD):
    """Compute the maps from scores alone: a weight is the change of a score as a channel rises in all cells of a step."""
    _, class_B = clip_scores(model, features_BTKKD)
    level_BTKK = np.zeros(features_BTKKD.shape[:-1])
    for step in range(STEPS):
        for channel in range(CHANNELS):
            ends = []
            for shift in (SHIFT, -SHIFT):
                moved_BTKKD = features_BTKKD.clone()
                moved_BTKKD[:, step, :, :, channel] += shift
                ends.append(clip_scores(model, moved_BTKKD)[0][np.arange(CLIPS), class_B])
            weight_B = (ends[0] - ends[1]) / (2 * SHIFT) / GRID**2
            level_BTKK[:, step] += weight_B[:, None, None] * features_BTKKD[:, step, :, :, channel].numpy()
    level_BTKK = np.maximum(level_BTKK, 0)
    total_BT11 = level_BTKK.sum(axis=(2, 3), keepdims=True)
    return np.where(total_BT11 > 0, level_BTKK / np.maximum(total_BT11, 1e-300), 1 / GRID**2)


@pytest.mark.parametrize("name", MODELS)
def test_every_models_maps_are_those_of_finite_differences(name):
    model, features_BTKKD = make_model(name), make_features()
    map_BTKK = grad_cam(model, features_BTKKD, VALID).numpy()
    expected_BTKK = reference(model, features_BTKKD)
    for clip, count in enumerate(VALID.tolist()):
        np.testing.assert_allclose(map_BTKK[clip, :count], expected_BTKK[clip, :count], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(map_BTKK.sum(axis=(2, 3)), 1)


def test_of_the_mean_pool_it_is_the_class_activation_map():
    model, features_BTKKD = make_model("mean_pool"), make_features()
    _, class_B = clip_scores(model, features_BTKKD)
    weight_CD = dict(model.named_parameters())["network.head.weight"].detach()
    level_BTKK = torch.einsum("bd,btijd->btij", weight_CD[class_B] - weight_CD.mean(dim=0), features_BTKKD).relu()
    expected_BTKK = level_BTKK / level_BTKK.sum(dim=(2, 3), keepdim=True)
    map_BTKK = grad_cam(model, features_BTKKD, VALID)
    torch.testing.assert_close(map_BTKK[0], expected_BTKK[0])
    torch.testing.assert_close(map_BTKK[1, :2], expected_BTKK[1, :2])


class WithACommonTerm(torch.nn.Module):
    """A model whose logits have one and the same function of the features added."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features_BTKKD, valid_steps_B):
        logits_BTC, *others = self.model(features_BTKKD, valid_steps_B)
        return logits_BTC - 9 * features_BTKKD.square().mean(dim=(2, 3, 4))[..., None], *others


def test_what_all_logits_have_in_common_changes_nothing():
    model, features_BTKKD = make_model("mean_pool"), make_features()
    maps = [grad_cam(one, features_BTKKD, VALID) for one in (model, WithACommonTerm(model))]
    torch.testing.assert_close(*maps)


class OneChannelForEachClass(torch.nn.Module):
    """Its logits are the means of the first channels over the cells."""

    def forward(self, features_BTKKD, valid_steps_B):
        return features_BTKKD.mean(dim=(2, 3))[..., :CLASSES], None, None


def test_the_cell_that_speaks_for_the_predicted_class_has_the_whole_map():
    features_BTKKD = torch.zeros(CLIPS, STEPS, GRID, GRID, CHANNELS)
    features_BTKKD[:, :, 2, 1, 3] = 5.0  # class 3
    features_BTKKD[:, :, 0, 0, 1] = 2.0  # another class, and less
    features_BTKKD[:, :, 0, 2, 3] = -1.0  # against class 3
    map_BTKK = grad_cam(OneChannelForEachClass(), features_BTKKD, torch.tensor([STEPS] * CLIPS))
    expected_KK = torch.zeros(GRID, GRID)
    expected_KK[2, 1] = 1
    assert (map_BTKK == expected_KK).all()


def test_a_step_without_evidence_has_a_uniform_map():
    features_BTKKD = torch.zeros(1, STEPS, GRID, GRID, CHANNELS)
    features_BTKKD[0, 0, 1, 1, 0] = 1
    map_BTKK = grad_cam(OneChannelForEachClass(), features_BTKKD, torch.tensor([STEPS]))
    assert map_BTKK[0, 0, 1, 1] == 1
    assert torch.allclose(map_BTKK[0, 1:], torch.tensor(1 / GRID**2))


@pytest.mark.parametrize("name", ["mean_pool", "lrcn", "fusion_slow", "temporal_attention", "motion_conv_alstm"])
def test_padding_changes_no_valid_steps_map(name):
    model, features_BTKKD = make_model(name), make_features()
    before_BTKK = grad_cam(model, features_BTKKD, VALID)
    features_BTKKD[1, 2] += 9
    after_BTKK = grad_cam(model, features_BTKKD, VALID)
    torch.testing.assert_close(after_BTKK[1, :2], before_BTKK[1, :2])


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_explainers_maps_of_a_loader_are_in_its_order_and_the_model_has_no_gradients_afterwards(name):
    model = make_model("lrcn").float()
    batches = [Batch(make_features(seed).half(), VALID, torch.zeros(CLIPS)) for seed in (1, 2)]
    loader = SimpleNamespace(batches=lambda batch_size: iter(batches))
    map_NTKK = explain(EXPLAINERS[name], model, loader)
    assert (map_NTKK.shape, map_NTKK.dtype) == ((2 * CLIPS, STEPS, GRID, GRID), torch.float32)
    for batch, map_BTKK in zip(batches, map_NTKK.split(CLIPS), strict=True):
        torch.testing.assert_close(map_BTKK, EXPLAINERS[name](model, batch.features_BTKKD.float(), VALID))
    assert all(parameter.grad is None for parameter in model.parameters())
