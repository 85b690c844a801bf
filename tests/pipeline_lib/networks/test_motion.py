"""Motion-based attention: what it depends on, and what each ablation takes away."""

# B batch, T steps of a clip, K grid side

import pytest
import torch

from pipeline_lib.params import ModelParams, TrainParams
from tests.pipeline_lib.networks.test_models import count, small_model, some_features

pytestmark = pytest.mark.usefixtures("single_thread")

RGB, FLOW = slice(0, 6), slice(6, 9)
VALID = torch.tensor([4])


@pytest.fixture(params=["motion_conv_alstm", "motion_alstm"])
def name(request):
    return request.param


def make(name, motion="state", channels=9, **options):
    return small_model(name, channels=channels, motion=motion, **options).double().eval()


def changed(features, step, channels, cell=(1, 2)):
    """Return the features with other values of some channels in one cell of one step."""
    other = features.clone()
    other[:, step, cell[0], cell[1], channels] += 0.5
    return other


def difference_by_step(network, features, other, output=1):
    """Return the largest difference between the outputs for two inputs at each step; output 1 is attention."""
    with torch.no_grad():
        ours, theirs = (network(x, VALID)[output] for x in (features, other))
    return (ours - theirs).abs().flatten(2).amax(dim=(0, 2))


@pytest.fixture
def features():
    return some_features(1, 5, 4, 4, 9).double()  # four valid steps


@pytest.mark.parametrize("channels", [RGB, FLOW])
def test_the_first_attention_knows_the_whole_clip_but_no_padding(name, features, channels):
    """h_0 and hm_0 are from the means over the valid steps of RGB and of flow."""
    network = make(name)
    assert difference_by_step(network, features, changed(features, 3, channels))[0] > 1e-8
    assert difference_by_step(network, features, changed(features, 4, channels))[:4].max() == 0


@pytest.mark.parametrize("channels", [RGB, FLOW])
def test_attention_over_the_flow_map_alone_depends_on_its_own_step(name, features, channels):
    network = make(name, "map")
    difference = difference_by_step(network, features, changed(features, 2, channels))
    assert difference[2] > 1e-6
    assert difference[[0, 1, 3, 4]].max() == 0
    assert not [key for key in network.state_dict() if key.startswith(("attention.cell", "attention.initial"))]
    assert difference_by_step(network, features, changed(features, 2, channels), output=0)[3] > 1e-9  # by the state below


def test_the_motion_state_sees_its_own_step_and_remembers(name, features):
    """Two changes of flow that leave its mean over the clip: attention differs from the first changed step on."""
    network = make(name)
    difference = difference_by_step(network, features, features[:, [0, 2, 1, 3, 4]])
    assert difference[0] < 1e-12
    assert difference[1:4].min() > 1e-8


def test_flow_reaches_the_label_through_attention_alone(name, features):
    other = changed(features, 1, FLOW)
    assert difference_by_step(make(name), features, other, output=0)[1:4].min() > 1e-9
    blind = make(name, uniform_start=True)  # its scores are all the same
    assert difference_by_step(blind, features, other, output=0).max() == 0


def test_magnitude_has_no_direction(name, features):
    """The root mean square over flow's channels in each cell decides, whatever the channels are."""
    turned = features.clone()
    turned[..., FLOW] = -features[..., [7, 8, 6]]
    stronger = features.clone()
    stronger[:, :4, 1, 2, FLOW] *= 2
    network = make(name, "magnitude")
    assert difference_by_step(network, features, turned).max() < 1e-12
    assert difference_by_step(network, features, stronger)[:4].min() > 1e-8
    assert difference_by_step(make(name), features, turned)[:4].min() > 1e-8


def test_magnitude_of_vectors_knows_where():
    """The K^2 magnitudes are a vector, not a mean."""
    features = some_features(1, 4, 4, 4, 9).double()
    moved = features.clone()
    moved[..., FLOW] = features[..., FLOW].roll(1, dims=2)
    assert difference_by_step(make("motion_alstm", "magnitude"), features, moved).min() > 1e-8
    assert difference_by_step(make("motion_alstm"), features, moved).max() < 1e-12


def test_magnitude_of_no_motion_has_a_gradient(name):
    network = make(name, "magnitude")
    features = some_features(1, 3, 4, 4, 9).double()
    features[..., FLOW] = 0
    features.requires_grad_()
    network(features, torch.tensor([3]))[0].sum().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("motion", ["map", "magnitude"])
def test_gradients_of_ablations(name, motion):
    network = make(name, motion, units=2, channels=3, grid=2)
    features = 0.1 + some_features(1, 2, 2, 2, 3).double()
    assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor([2])), features.requires_grad_())


def test_a_shuffled_model_is_the_model(name, features):
    """What is shuffled is what it reads."""
    network, shuffled = make(name), make(name, "shuffled")
    assert all(torch.equal(weight, other) for weight, other in zip(network.parameters(), shuffled.parameters(), strict=True))
    assert torch.equal(network(features, VALID)[1], shuffled(features, VALID)[1])


def test_sizes_at_videolstms_widths():
    """Both ConvLSTMs, four initial states, the scorer, and ConvALSTM's default head."""
    network = small_model("motion_conv_alstm", channels=768, grid=7, num_classes=101, units=512)  # 512 of RGB, 256 of flow
    units, flow = 512, 256
    on_flow = 4 * units * (flow + 2 * units + 1) + 2 * units * (flow + 1)
    on_rgb = 4 * units * (9 * 2 * units + 1) + 2 * units * (9 * units + 1)
    scorer = 2 * units * (units + 1) + units + 1
    head = 128 * (9 * units + 1) + 101 * 129
    assert count(network) == on_flow + on_rgb + scorer + head


def test_only_motion_models_have_a_kind_of_motion():
    train = TrainParams(motion="map", overrides={"motion_alstm@rgb+flow": {"motion": "shuffled"}})
    assert [train.of(name).motion for name in ("alstm", "motion_conv_alstm", "motion_alstm")] == [None, "map", "map"]
    assert train.of("motion_alstm@rgb+flow").recipe()["motion"] == "shuffled"
    with pytest.raises(ValueError, match=r"train\.overrides\.motion_alstm\.motion = 'speed'"):
        TrainParams(overrides={"motion_alstm": {"motion": "speed"}})


@pytest.mark.parametrize("model", ["alstm", "conv_alstm", "attention_pool", "lrcn", "mean_pool"])
def test_models_without_motion_keep_the_recipe_that_they_were_trained_by(model):
    params = TrainParams(motion="map").of(model)
    names = {"epochs", "batch_size", "learning_rate", "dropout", "attention_penalty", "weight_decay", "patience", "layers"}
    names |= {"scorer", "uniform_start", "rescale_glimpse", "carry_state", "head_channels", "normalise", "model", "units"}
    assert params.recipe() == TrainParams().of(model).recipe()
    assert set(params.recipe()) == names | {"seed", "deterministic"}
    assert ModelParams.model_validate(params.recipe()) == params
