"""Sizes, gradients and behaviour of the models."""

# B batch, T frames of a clip, K grid side, D channels, U units, C classes

import pytest
import torch

from pipeline_lib.models.registry import MODELS, build_model, model_kind
from pipeline_lib.params import TrainParams

pytestmark = pytest.mark.usefixtures("single_thread")

ARTICLE_PARAMETERS = {"alstm": 2_925_924, "conv_alstm": 7_916_084}


@pytest.fixture(params=list(MODELS))
def name(request):
    return request.param


def small_model(name, *, channels=6, grid=4, num_classes=3, units=8, dropout=0.5):
    torch.manual_seed(0)
    params = TrainParams(alstm_units=units, conv_alstm_units=units, dropout=dropout)
    return build_model(name, channels=channels, grid=grid, num_classes=num_classes, params=params)


def some_features(*size, seed=0):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def test_every_model_of_the_parameters_is_registered():
    assert tuple(MODELS) == TrainParams().models


def test_an_unknown_model_is_named_with_what_is_accepted():
    with pytest.raises(ValueError, match=r"unknown model 'lrcn'; train.models accepts alstm, conv_alstm"):
        model_kind("lrcn")


def test_parameter_counts_are_the_articles(name):
    model = build_model(name, channels=512, grid=7, num_classes=51, params=TrainParams())
    assert sum(parameter.numel() for parameter in model.parameters()) == ARTICLE_PARAMETERS[name]


def test_shapes_and_attention_sums_to_one(name):
    logits, attention = small_model(name)(some_features(2, 5, 4, 4, 6), torch.tensor([5, 2]))
    assert logits.shape == (2, 5, 3)
    assert attention.shape == (2, 5, 4, 4)
    assert (attention > 0).all()
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 5))


def test_every_parameter_learns(name):
    """In the tutorial's code the recurrent kernel and c_0 never did."""
    model = small_model(name, dropout=0.0)
    logits, _ = model(some_features(2, 5, 4, 4, 6), torch.tensor([5, 5]))
    logits[:, -1].square().sum().backward()
    # A softmax does not see what is added to all its scores.
    dead = {"score.bias"} if name == "conv_alstm" else set()
    for key, parameter in model.named_parameters():
        assert (parameter.grad.abs().max() > 1e-7) == (key not in dead), key


def test_map_changes_with_the_frame_before(name):
    model = small_model(name).eval()
    features = some_features(1, 4, 4, 4, 6)
    swapped = features[:, [1, 0, 2, 3]]  # keeps ALSTM's mean over the clip, hence its h_0
    with torch.no_grad():
        before, after = (model(x, torch.tensor([4]))[1] for x in (features, swapped))
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-6
    assert (before[:, 3] - after[:, 3]).abs().max() > 1e-7


def test_padding_does_not_touch_the_valid_frames(name):
    model = small_model(name).eval()
    features = some_features(2, 6, 4, 4, 6)
    other = features.clone()
    other[:, 3:] = some_features(2, 3, 4, 4, 6, seed=9)
    with torch.no_grad():
        ours, theirs = (model(x, torch.tensor([3, 3])) for x in (features, other))
    for mine, yours in zip(ours, theirs, strict=True):
        assert torch.equal(mine[:, :3], yours[:, :3])


def test_conv_alstm_scores_cells_by_what_they_hold():
    """At the first frame, before its state has a place, turning the frame turns the map."""
    model = small_model("conv_alstm").eval()
    features = some_features(1, 1, 4, 4, 6)
    with torch.no_grad():
        straight, turned = (model(x, torch.tensor([1]))[1] for x in (features, features.rot90(dims=(2, 3))))
    torch.testing.assert_close(straight.rot90(dims=(2, 3)), turned)


def test_dropout_works_in_training_only(name):
    model = small_model(name)
    features, valid_frames = some_features(2, 3, 4, 4, 6), torch.tensor([3, 3])
    assert not torch.equal(model(features, valid_frames)[0], model(features, valid_frames)[0])
    model.eval()
    assert torch.equal(model(features, valid_frames)[0], model(features, valid_frames)[0])


def test_gradients(name):
    model = small_model(name, channels=3, grid=2, num_classes=2, units=4, dropout=0.0).double()
    features = some_features(2, 3, 2, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, torch.tensor([3, 2])), features)


def test_forget_gate_starts_open(name):
    units = 8
    bias = small_model(name, units=units).cell.input.bias
    assert bias.tolist() == [0.0] * units + [1.0] * units + [0.0] * 2 * units
