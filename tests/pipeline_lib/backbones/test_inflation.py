"""A network for RGB takes other numbers of channels, with the same output where all channels are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.backbones.inflation import inflate, inflated

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize("channels_in", [1, 2, 3, 10])
@pytest.mark.parametrize("name", ["vgg_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_network_equals_the_original_on_constant_input(name: str, channels_in: int) -> None:
    extractor = build_backbone(name, "random", grid=7, seed=0).extractor.double()
    frames_NCHW = torch.rand(2, 1, 64, 64, dtype=torch.float64).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        wanted = extractor(frames_NCHW)
        inflate(extractor, channels_in)
        found = extractor(frames_NCHW[:, :1].expand(-1, channels_in, -1, -1))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_first_layer_equals_the_original_exactly() -> None:
    """Small integers leave no rounding; the mean over RGB is what counts, not a single colour."""
    weight = torch.tensor([[1.0, 2.0, 6.0], [-3.0, 3.0, 9.0]])[:, :, None, None]
    new = inflated(weight, 6)
    assert new.shape == (2, 6, 1, 1)
    assert new[:, :, 0, 0].tolist() == [[1.5] * 6, [1.5] * 6]
    assert torch.equal(nn.functional.conv2d(torch.full((1, 6, 2, 2), 2.0), new), torch.full((1, 2, 2, 2), 18.0))


def test_pixels_of_flow_are_normalised_around_the_middle() -> None:
    backbone = build_backbone("vgg16", "random", grid=7, seed=0, channels_in=10)
    assert backbone.channels_in == 10
    assert backbone.preprocessing.mean == (0.5,) * 10
    assert backbone.preprocessing.std == pytest.approx((0.226,) * 10)
    assert backbone.map_shape(224) == (512, 7, 7)
    with torch.inference_mode():
        assert backbone(torch.rand(1, 10, 64, 64)).shape == (1, 7, 7, 512)


def test_state_dict_for_rgb_is_inflated_and_one_for_these_channels_loads_as_it_is(tmp_path: Path) -> None:
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), tmp_path / "rgb.pth")
    from_rgb = build_backbone("squeezenet1_1", str(tmp_path / "rgb.pth"), grid=7, seed=0, channels_in=4)
    original = build_backbone("squeezenet1_1", str(tmp_path / "rgb.pth"), grid=7, seed=0)
    first = from_rgb.extractor.features[0]
    assert torch.equal(first.weight, inflated(original.extractor.features[0].weight, 4))
    nn.init.normal_(first.weight)
    torch.save(from_rgb.extractor.state_dict(), tmp_path / "tuned.pth")
    tuned = build_backbone("squeezenet1_1", "random", grid=7, seed=1, weights_file=tmp_path / "tuned.pth", channels_in=4)
    assert torch.equal(tuned.extractor.features[0].weight, first.weight)


def test_state_dict_for_other_channels_does_not_fit(tmp_path: Path) -> None:
    state = build_backbone("vgg_small", "random", grid=7, seed=0, channels_in=4).extractor.state_dict()
    torch.save(state, tmp_path / "four.pth")
    for channels_in in (3, 6):
        with pytest.raises(ValueError, match=r"four\.pth does not fit vgg_small: 1 of .*features\.0\.weight"):
            build_backbone("vgg_small", str(tmp_path / "four.pth"), grid=7, seed=0, channels_in=channels_in)


def test_clip_network_takes_rgb_only() -> None:
    with pytest.raises(ValueError, match=r"^features\.backbone = mc3_18: takes clips of RGB frames, not 10 channels"):
        build_backbone("mc3_18", "random", grid=7, seed=0, channels_in=10)
