"""The network to tune: a backbone with a linear head, frozen except for the head and the last blocks.

The head takes the average of the feature map, so that a class's logit is a mean over cells (Zhou et al. 2016, class activation
maps). Tuned feature maps therefore stay local, which attention needs.

Shape suffixes: N examples (frames, stacks of flows, or clips), C channels or classes, D feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline_lib.backbones.build import Backbone


class FrameClassifier(nn.Module):
    """A backbone's extractor with average pooling, dropout and a linear head.

    Args:
        backbone: its extractor is trained in place.
        tuned: modules of the extractor to train; all others are frozen.
        num_classes: number of classes.
        dropout: probability of dropping a feature before the head.
    """

    def __init__(self, backbone: Backbone, tuned: Sequence[nn.Module], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.extractor = backbone.extractor.requires_grad_(False)
        self.tuned = tuple(module.requires_grad_(True) for module in tuned)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.channels, num_classes)

    def train(self, mode: bool = True) -> FrameClassifier:
        """Set the mode of the tuned modules; frozen ones stay in evaluation mode.

        Tuned batch normalisation layers therefore update their running statistics.
        """
        super().train(mode)
        self.extractor.eval()
        for module in self.tuned:
            module.train(mode)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits_NC of normalised images_NCHW or clips_NCTHW."""
        return self.head(self.dropout(self.features(inputs)))

    def features(self, inputs: Tensor) -> Tensor:
        """Return features_ND of normalised inputs, averaged over cells and the steps of clips."""
        maps = self.extractor(inputs)
        return maps.mean(dim=tuple(range(2, maps.ndim)))
