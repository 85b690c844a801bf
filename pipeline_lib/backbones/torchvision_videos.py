"""torchvision's video classification networks, truncated after their last feature map.

Shape suffixes: N clips, C colour channels, T frames of a clip, S steps, H W pixels of a frame or cells of a map, L tokens,
D feature channels.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.video import MViT, SwinTransformer3d
from torchvision.ops.misc import Permute

from pipeline_lib.backbones.family import Family, not_downloaded
from pipeline_lib.backbones.network import Network, Preprocessing, Timing, TokenNetwork, map_of_tokens
from pipeline_lib.compute.determinism import seeded

RESNET, SWIN = Timing(stride=8), Timing(stride=2)
MVIT = Timing(stride=2, shortest=16, window=16)

TIMINGS = {
    "mc3_18": Timing(),
    "r3d_18": RESNET,
    "r2plus1d_18": RESNET,
    "s3d": Timing(stride=8, first=2, after=2, shortest=14),
    "mvit_v1_b": MVIT,
    "mvit_v2_s": MVIT,
    "swin3d_t": SWIN,
    "swin3d_s": SWIN,
    "swin3d_b": SWIN,
}
"""A step's middle is where its receptive field is centred: strided convolutions with padding centre on their first frame."""

LAST_MODULES = ("layer4", "features")
"""Child module with the last feature map of a convolutional network."""


class MViTTokens(TokenNetwork):
    """A multiscale vision transformer that returns its tokens as a feature map, without the class token."""

    def __init__(self, network: MViT) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.pos_encoding = network.pos_encoding
        self.blocks = network.blocks
        self.norm = network.norm

    def forward(self, clips_NCTHW: Tensor) -> Tensor:
        """Return the map_NDSHW of the last block."""
        tokens_NLD = self.pos_encoding(self.conv_proj(clips_NCTHW).flatten(2).transpose(1, 2))
        size = (self.pos_encoding.temporal_size, *self.pos_encoding.spatial_size)
        for block in self.blocks:
            tokens_NLD, size = block(tokens_NLD, size)
        return map_of_tokens(self.norm(tokens_NLD)[:, 1:], steps=size[0])

    def layers(self) -> list[list[nn.Module]]:
        """Return the blocks, the first with the embedding, the last with the normalisation."""
        layers: list[list[nn.Module]] = [[block] for block in self.blocks]
        layers[0][:0] = [self.conv_proj, self.pos_encoding]
        layers[-1].append(self.norm)
        return layers


class TorchvisionVideos(Family):
    """The networks of `torchvision.models.video`."""

    input = "clip"
    pretrained = "kinetics"

    def names(self) -> list[str]:
        """Return the names as in `torchvision.models.list_models`."""
        return list(TIMINGS)

    def initialise(self, name: str, seed: int) -> Network:
        """Return the network with seeded random weights."""
        with seeded(seed):
            return _describe(name, get_model(name, weights=None))

    def download(self, name: str) -> Network:
        """Return the network with torchvision's default weights."""
        try:
            network = get_model(name, weights="DEFAULT")
        except (OSError, RuntimeError) as error:
            raise not_downloaded(name, "kinetics", "torchvision", error) from None
        return _describe(name, network, f"kinetics: {get_model_weights(name)['DEFAULT']}")


def _describe(name: str, network: nn.Module, weights_description: str = "") -> Network:
    transforms = get_model_weights(name)["DEFAULT"].transforms()
    (size,) = set(transforms.crop_size)
    return Network(
        _cut_off(network),
        Preprocessing(tuple(transforms.mean), tuple(transforms.std)),
        own_size=size,
        fixed_size=size if isinstance(network, MViT) else None,
        timing=TIMINGS[name],
        weights_description=weights_description,
    )


def _cut_off(network: nn.Module) -> nn.Module:
    """Return the network up to its last feature map; weights keep their names."""
    if isinstance(network, MViT):
        return MViTTokens(network)
    children = OrderedDict(network.named_children())
    if isinstance(network, SwinTransformer3d):
        children = OrderedDict((name, children[name]) for name in ("patch_embed", "pos_drop", "features", "norm"))
        return nn.Sequential(children | {"permute": Permute([0, 4, 1, 2, 3])})
    while next(reversed(children)) not in LAST_MODULES:
        children.popitem()
    return nn.Sequential(children)
