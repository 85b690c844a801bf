"""Sizes, gradients and behaviour of the models."""

# B batch, T frames of a clip, K grid side, D channels, U units, C classes

import pytest
import torch

from pipeline_lib.networks.normalisation import SCALE, Normalised
from pipeline_lib.networks.registry import MODELS, build_model, model_kind
from pipeline_lib.params import DEFAULT_MODELS, TrainParams
from pipeline_lib.params import MODELS as MODEL_NAMES
from pipeline_lib.training.batches import Batch
from tests.pipeline_lib.networks.sizes import split_channels

pytestmark = pytest.mark.usefixtures("single_thread")

ARTICLE = {
    "scorer": "pooled",
    "uniform_start": False,
    "rescale_glimpse": False,
    "head_channels": None,
    "normalise": False,
    "alstm_units": 512,
    "conv_alstm_units": 256,
}
ARTICLE_PARAMETERS = {"alstm": 2_925_924, "conv_alstm": 7_916_084}
RECURRENT = ("alstm", "conv_alstm", "lrcn", "motion_conv_alstm", "motion_alstm")
SOFT = ("alstm", "conv_alstm", "attention_pool", "motion_conv_alstm", "motion_alstm")
FUSIONS = ("fusion_early", "fusion_late", "fusion_slow")


@pytest.fixture(params=list(MODELS))
def name(request):
    return request.param


def small_model(name, *, channels=6, grid=4, num_classes=3, units=8, **options):
    torch.manual_seed(0)
    options = {"normalise": False, "uniform_start": False, **options}
    params = TrainParams(alstm_units=units, conv_alstm_units=units, **options).of(name)
    return build_model(params, channels=split_channels(name, channels), grid=grid, num_classes=num_classes)


def some_features(*size, seed=0):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_model_of_the_parameters_is_registered():
    assert tuple(MODELS) == MODEL_NAMES
    assert TrainParams().models == DEFAULT_MODELS


def test_an_unknown_model_is_named_with_what_is_accepted():
    with pytest.raises(ValueError, match=r"unknown model 'i3d'; train.models accepts alstm, conv_alstm, attention_pool"):
        model_kind("i3d")


@pytest.mark.parametrize("model", ARTICLE_PARAMETERS)
def test_parameter_counts_are_the_articles(model):
    network = build_model(TrainParams(**ARTICLE).of(model), channels=512, grid=7, num_classes=51)
    assert count(network) == ARTICLE_PARAMETERS[model]


@pytest.mark.parametrize("model", ARTICLE_PARAMETERS)
def test_a_state_that_is_not_carried_has_the_same_parameters(model):
    """As in the tutorial's code, where c_0 and the recurrent weights are there and do nothing."""
    params = TrainParams(**ARTICLE, carry_state=False).of(model)
    assert count(build_model(params, channels=512, grid=7, num_classes=51)) == ARTICLE_PARAMETERS[model]


def test_baselines_are_alstm_with_something_taken_away():
    alstm, lrcn, attention_pool = (small_model(model, scorer="local") for model in ("alstm", "lrcn", "attention_pool"))
    assert count(lrcn) == count(alstm) - count(alstm.attention)
    assert count(attention_pool.attention) == count(alstm.attention) - count(alstm.attention.state)
    assert count(small_model("mean_pool")) == 6 * 3 + 3


def test_shapes_and_attention_sums_to_one(name):
    logits, attention, importance = small_model(name, dropout=0.0)(some_features(2, 5, 4, 4, 6), torch.tensor([5, 2]))
    assert logits.shape == (2, 5, 3)
    assert attention.shape == (2, 5, 4, 4)
    assert (attention > 0).all()
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 5))
    torch.testing.assert_close(importance.sum(dim=1), torch.ones(2))
    assert not importance[1, 2:].any()
    assert torch.allclose(importance[0], torch.full((5,), 1 / 5), atol=1e-5) == (name != "temporal_attention")
    spread = (attention.amax(dim=(2, 3)) - attention.amin(dim=(2, 3))).min()
    assert (spread > 1e-4) == (name in SOFT)


@pytest.mark.parametrize("model", SOFT)
def test_attention_that_begins_uniform_is_uniform_until_it_learns(model):
    network = small_model(model, uniform_start=True, dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    features, valid_frames = some_features(2, 5, 4, 4, 6), torch.tensor([5, 5])
    _, attention, _ = network(features, valid_frames)
    torch.testing.assert_close(attention, torch.full_like(attention, 1 / 16))
    for _ in range(5):
        optimizer.zero_grad()
        network(features, valid_frames)[0][..., 0].sum().backward()
        optimizer.step()
    _, attention, _ = network(features, valid_frames)
    assert attention.amax() > 1 / 16 + 1e-3


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("scorer", ["pooled", "local"])
def test_every_parameter_learns(name, scorer, layers):
    """In the tutorial's code the recurrent kernel and c_0 never did."""
    model = small_model(name, dropout=0.0, scorer=scorer, layers=layers, head_channels=None).double()
    logits = model(some_features(2, 5, 4, 4, 6).double(), torch.tensor([5, 5])).logits_BTC
    logits[:, -1].square().sum().backward()
    # A softmax does not see what is added to all its scores.
    one_score = name in ("conv_alstm", "motion_conv_alstm") or (name in SOFT and scorer == "local")
    for key, parameter in model.named_parameters():
        is_dead = one_score and key.endswith("attention.score.bias")
        assert (parameter.grad.abs().max() > 1e-12) != is_dead, key


@pytest.mark.parametrize("model", ["alstm", "conv_alstm"])
def test_without_carried_state_what_the_tutorials_code_never_trained_is_not_trained(model):
    network = small_model(model, dropout=0.0, carry_state=False)
    logits = network(some_features(2, 5, 4, 4, 6), torch.tensor([5, 5])).logits_BTC
    logits.square().sum().backward()
    idle = {key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    wanted = {"cells.0.recurrent.weight"} | (
        {f"initial_c.0.{kind}" for kind in ("weight", "bias")} if model == "alstm" else set()
    )
    assert idle - {"attention.score.bias"} == wanted


@pytest.mark.parametrize("carry_state", [True, False])
@pytest.mark.parametrize("model", ["alstm", "conv_alstm"])
def test_map_changes_with_the_frame_before(model, carry_state):
    network = small_model(model, carry_state=carry_state).eval()
    features = some_features(1, 4, 4, 4, 6)
    swapped = features[:, [1, 0, 2, 3]]  # keeps ALSTM's mean over the clip, hence its h_0
    with torch.no_grad():
        before, after = (network(x, torch.tensor([4]))[1] for x in (features, swapped))
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-6
    if carry_state:
        assert (before[:, 3] - after[:, 3]).abs().max() > 1e-7


def test_only_recurrent_models_and_fusions_see_the_order_of_frames(name):
    network = small_model(name).eval()
    features = some_features(1, 4, 4, 4, 6)
    with torch.no_grad():
        forwards, backwards = (network(x, torch.tensor([4]))[0] for x in (features, features.flip(1)))
    assert torch.allclose(forwards, backwards.flip(1), atol=1e-6) == (name not in (*RECURRENT, *FUSIONS))


def test_padding_does_not_touch_the_valid_frames(name):
    model = small_model(name).eval()
    features = some_features(2, 6, 4, 4, 6)
    other = features.clone()
    other[:, 3:] = some_features(2, 3, 4, 4, 6, seed=9)
    with torch.no_grad():
        ours, theirs = (model(x, torch.tensor([3, 3])) for x in (features, other))
    for mine, yours in zip(ours, theirs, strict=True):
        assert torch.equal(mine[:, :3], yours[:, :3])


@pytest.mark.parametrize("model", ["alstm", "attention_pool"])
def test_a_local_scorer_moves_with_what_it_sees_and_a_pooled_one_cannot(model):
    """However the cells are rearranged, local attention goes with them; label and state stay."""
    features = some_features(1, 3, 4, 4, 6)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    shuffled = features.flatten(2, 3)[:, :, order].view_as(features)
    for scorer in ("local", "pooled"):
        network = small_model(model, scorer=scorer).eval()
        with torch.no_grad():
            logits, attention, _ = network(features, torch.tensor([3]))
            logits_after, attention_after, _ = network(shuffled, torch.tensor([3]))
        moved = attention.flatten(2)[:, :, order].view_as(attention)
        assert torch.allclose(moved, attention_after, atol=1e-6) == (scorer == "local")
        assert torch.allclose(logits, logits_after, atol=1e-6) == (scorer == "local")


def mirror(kernel):
    with torch.no_grad():
        kernel.add_(kernel.flip(3)).div_(2)


@pytest.mark.parametrize("head_channels", [None, 5])
def test_conv_alstm_mirrors_its_maps_with_the_frame(head_channels):
    """With kernels that are their own mirror image, the whole recurrence commutes with mirroring; only a flat head sees it."""
    network = small_model("conv_alstm", head_channels=head_channels).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            mirror(module.weight)
    features = some_features(1, 4, 4, 4, 6)
    with torch.no_grad():
        logits, attention, _ = network(features, torch.tensor([4]))
        logits_after, attention_after, _ = network(features.flip(3), torch.tensor([4]))
    torch.testing.assert_close(attention.flip(3), attention_after)
    assert torch.allclose(logits, logits_after, atol=1e-6) == (head_channels is not None)


def test_dropout_works_in_training_only(name):
    model = small_model(name)
    features, valid_frames = some_features(2, 3, 4, 4, 6), torch.tensor([3, 3])
    assert not torch.equal(model(features, valid_frames)[0], model(features, valid_frames)[0])
    model.eval()
    assert torch.equal(model(features, valid_frames)[0], model(features, valid_frames)[0])


@pytest.mark.parametrize("scorer", ["local", "pooled"])
def test_attention_drops_a_channel_in_all_cells_or_in_none(scorer):
    attention = small_model("alstm", scorer=scorer).attention
    seen = []
    attention.features.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    attention.look_ahead(1 + some_features(2, 5, 16, 6))
    dropped = seen[0] == 0
    assert 0.2 < dropped.float().mean() < 0.8
    if scorer == "local":
        assert seen[0].shape == (2, 5, 16, 6)
        assert torch.equal(dropped, dropped[:, :, :1].expand_as(dropped))
    else:
        assert seen[0].shape == (2, 5, 6)


@pytest.mark.parametrize("options", [{}, {"scorer": "pooled", "head_channels": None}, {"layers": 2, "carry_state": False}])
def test_gradients(name, options):
    model = small_model(name, channels=3, grid=2, num_classes=2, units=4, dropout=0.0, **options).double()
    with torch.no_grad():  # with biases of zero a ReLU may have its kink where gradcheck looks
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    features = some_features(2, 3, 2, 2, 3).double().requires_grad_()
    parameters = [parameter for parameter in model.parameters() if parameter.numel() <= 40]

    def logits_of(features, *changed):
        names = [key for key, parameter in model.named_parameters() if parameter.numel() <= 40]
        outputs = torch.func.functional_call(model, dict(zip(names, changed, strict=True)), (features, torch.tensor([3, 2])))
        return outputs.logits_BTC

    assert torch.autograd.gradcheck(logits_of, (features, *parameters))


@pytest.mark.parametrize("model", [*RECURRENT, "temporal_attention"])
def test_forget_gate_starts_open(model):
    units = 8
    for cell in small_model(model, units=units, layers=2).cells:
        assert cell.input.bias.tolist() == [0.0] * units + [1.0] * units + [0.0] * 2 * units


def test_normalised_features_have_one_scale_whatever_theirs_and_padding_counts_for_nothing():
    features = some_features(3, 4, 2, 2, 6)
    results = []
    for factor in (1.0, 1000.0):
        network = small_model("mean_pool", grid=2, normalise=True).eval()
        assert isinstance(network, Normalised)
        scaled = features * factor
        scaled[0, 1:] = 9e9  # padding
        network.measure(
            [Batch(scaled[:2], torch.tensor([1, 4]), torch.zeros(2)), Batch(scaled[2:], torch.tensor([4]), torch.zeros(1))]
        )
        results.append(network(features * factor, torch.tensor([4, 4, 4]))[0])
        valid = torch.cat((features[0, :1], features[1], features[2])) * network.factor * factor
        assert valid.square().mean().sqrt().item() == pytest.approx(SCALE, rel=1e-5)
    torch.testing.assert_close(*results)


def two_streams(**options):
    return small_model("temporal_attention", channels=(4, 2), dropout=0.0, **options).eval()


def test_importance_follows_the_steps_and_the_label_does_not():
    features, order = some_features(1, 5, 4, 4, 6), torch.tensor([3, 0, 4, 1, 2])
    network = two_streams()
    with torch.no_grad():
        ours, theirs = (network(x, torch.tensor([5])) for x in (features, features[:, order]))
    torch.testing.assert_close(ours.importance_BT[:, order], theirs.importance_BT)
    torch.testing.assert_close(ours.logits_BTC, theirs.logits_BTC)
    assert torch.equal(ours.logits_BTC[:, 0], ours.logits_BTC[:, 4])


def test_importance_that_begins_uniform_is_uniform_over_valid_steps():
    importance = two_streams(uniform_start=True)(some_features(1, 5, 4, 4, 6), torch.tensor([4])).importance_BT
    torch.testing.assert_close(importance, torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0]]))


def test_attention_over_cells_is_of_the_first_stream():
    network = two_streams(spatial="local")
    features = some_features(1, 5, 4, 4, 6)
    other = features.clone()
    other[..., 4:] = some_features(1, 5, 4, 4, 2, seed=9)
    with torch.no_grad():
        ours, theirs = (network(x, torch.tensor([5])) for x in (features, other))
    assert ours.attention_BTKK.amax() > 1 / 16 + 1e-3
    assert torch.equal(ours.attention_BTKK, theirs.attention_BTKK)
    assert not torch.allclose(ours.logits_BTC, theirs.logits_BTC)


def test_gradients_of_attention_over_space_and_time():
    model = small_model(
        "temporal_attention", channels=(2, 1), grid=2, num_classes=2, units=4, dropout=0.0, spatial="local"
    ).double()
    features = some_features(2, 3, 2, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(model(x, torch.tensor([3, 2]))), (features,))


@pytest.mark.parametrize("model", FUSIONS)
def test_fusions_see_their_window_and_nothing_before_or_behind_it(model):
    network = small_model(model).eval()
    features = some_features(1, 24, 4, 4, 6).requires_grad_()
    network(features, torch.tensor([24])).logits_BTC[0, 5].square().sum().backward()
    seen = features.grad.abs().amax(dim=(0, 2, 3, 4)).nonzero().squeeze(1).tolist()
    assert seen == ([5, 13] if model == "fusion_late" else list(range(5, 15)))
