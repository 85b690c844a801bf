"""Adapt a network made for RGB to another number of input channels, such as those of a stack of flows.

The first convolution becomes the mean over RGB, copied to all channels and rescaled, so that an input whose channels are all
equal gives the same output as before (Wang et al. 2016, cross-modality pretraining).
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline_lib.backbones.network import IMAGENET, Preprocessing

RGB = 3


def inflate(extractor: nn.Module, channels_in: int) -> str:
    """Change the first convolution in place to take `channels_in` channels, and return the name of its weight."""
    for name, module in extractor.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == RGB:
            module.weight = nn.Parameter(inflated(module.weight.detach(), channels_in))
            module.in_channels = channels_in
            return f"{name}.weight"
    raise ValueError("the network has no convolution that takes RGB")


def inflated(weight: Tensor, channels_in: int) -> Tensor:
    """Return the mean of a weight (D x 3 x ...) over RGB, for each of `channels_in` channels, times 3 / channels_in."""
    mean = weight.double().mean(dim=1, keepdim=True).mul(RGB / channels_in).to(weight.dtype)
    return mean.repeat_interleave(channels_in, dim=1)


def preprocessing_of(channels_in: int) -> Preprocessing:
    """Return the preprocessing of channels that are no colours: values around 0.5, scaled as ImageNet's are on average."""
    return Preprocessing((0.5,) * channels_in, (sum(IMAGENET.std) / RGB,) * channels_in)
