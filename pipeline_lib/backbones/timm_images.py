"""timm's image networks (`timm:NAME`): the maps of convolutional networks, the patch tokens of vision transformers.

Shape suffixes: N frames, C colour channels, H W pixels of a frame or cells of a map, L tokens, D feature channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline_lib.backbones.family import Family, import_extra, not_downloaded, unknown
from pipeline_lib.backbones.network import Network, Preprocessing, TokenNetwork, map_of_tokens
from pipeline_lib.compute.determinism import seeded

BEHIND_THE_MAP = ("attn_pool", "fc_norm", "head")
"""Names of modules that pool the map or classify; they are removed."""


class TimmMaps(TokenNetwork):
    """A network of timm that returns its last feature map; prefix tokens (class, registers) are dropped."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        for name in BEHIND_THE_MAP:
            if isinstance(getattr(network, name, None), nn.Module):
                setattr(network, name, nn.Identity())

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Return the last feature map_NDHW."""
        features = self.network.forward_features(frames_NCHW)
        if features.ndim == 3:
            tokens_NLD = features[:, getattr(self.network, "num_prefix_tokens", 0) :]
            if tokens_NLD.shape[1] == 1:
                raise ValueError("it gives one token for the whole frame")
            return map_of_tokens(tokens_NLD)
        is_channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if is_channels_last else features

    def layers(self) -> list[list[nn.Module]]:
        """Return the modules with weights of each stage (of a transformer: of each layer), as timm groups them."""
        if not hasattr(self.network, "group_matcher"):
            return [[self.network]]
        timm = import_extra("timm", "timm.models", "timm")
        groups = timm.group_modules(self.network, self.network.group_matcher(coarse=True))
        return [[self.network.get_submodule(name) for name in groups[number]] for number in sorted(groups)]


class TimmImages(Family):
    """The networks of `timm.list_models`, by `timm:NAME`; a name may end with a tag of pretrained weights."""

    input = "image"
    prefix = "timm:"
    pretrained = "imagenet"

    def names(self) -> list[str]:
        """Return the names as in `timm.list_models`."""
        return import_extra("timm:NAME", "timm", "timm").list_models()

    def check(self, name: str) -> None:
        """Raise UserError, with similar names, if timm has no network with this name, or is not installed."""
        if not import_extra(name, "timm", "timm").is_model(name.removeprefix(self.prefix)):
            raise unknown(name, [self.prefix + known for known in self.names()])

    def initialise(self, name: str, seed: int) -> Network:
        """Return the network with seeded random weights."""
        with seeded(seed):
            return _describe(_create(name, pretrained=False))

    def download(self, name: str) -> Network:
        """Return the network with the weights of its tag, or of timm's default tag."""
        try:
            network = _create(name, pretrained=True)
        except Exception as error:  # of the network, of the Hub, and of timm itself if there are no such weights
            raise not_downloaded(name, "imagenet", "timm", error) from None
        tag = network.pretrained_cfg
        return _describe(network, f"imagenet: timm {tag['architecture']}.{tag['tag']} (licence: {tag.get('license')})")


def _create(name: str, *, pretrained: bool) -> Any:
    """Create the network without its classifier; position embeddings are resampled to the frames' size where timm can."""
    timm = import_extra(name, "timm", "timm")
    options = {"pretrained": pretrained, "num_classes": 0}
    try:
        return timm.create_model(name.removeprefix("timm:"), dynamic_img_size=True, **options)
    except TypeError:
        return timm.create_model(name.removeprefix("timm:"), **options)


def _describe(network: Any, weights_description: str = "") -> Network:
    config = import_extra("timm", "timm.data", "timm").resolve_model_data_config(network)
    *_, size = config["input_size"]
    is_fixed = network.pretrained_cfg.get("fixed_input_size") and not getattr(network, "dynamic_img_size", False)
    return Network(
        TimmMaps(network),
        Preprocessing(tuple(config["mean"]), tuple(config["std"])),
        own_size=size,
        fixed_size=size if is_fixed else None,
        prefix="network.",
        weights_description=weights_description,
    )
