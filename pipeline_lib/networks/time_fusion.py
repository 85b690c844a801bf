"""Where time is joined: the early, late and slow fusion of Karpathy et al. 2014, over feature maps.

The paper fuses frames inside a network that it trains from pixels. Here fusion happens after a frozen 2-D network has seen each
frame alone, so that even early fusion cannot see the motion of pixels. It is the paper's comparison of where time is joined,
one level up. Its fourth model, a single frame, is `mean_pool`.

    late    y_t = W_2 relu(W_1 [p_t ; p_t+8]),   p_t = mean_i X_ti
    early   y_t = W mean_i relu(C X_t..t+9)_i                C: one 3-D convolution over all 10 frames
    slow    y_t = W mean_i relu(C_3 relu(C_2 relu(C_1 X_t..t+9)))_i
                  C_1, C_2, C_3: kernels of 4, 2, 2 steps with stride 2, so that 10 frames become 4, 2, and 1 step

Biases are left out above. Kernels have 3x3 cells with same padding. Windows are of 10 frames, 2/3 s at 15 fps (the paper: 10
frames, 1/3 s); late fusion joins frames that are 8 apart (the paper: 15 at 30 fps). A window starts at every frame; behind the
last valid frame it repeats that frame. Dropout is applied to the input of the last layer, and of W_1.
"""

# B batch, T steps of a clip, F frames with those that windows repeat, N = B * T images, K grid side, D channels, U units

from __future__ import annotations

import torch
from torch import nn

from pipeline_lib.networks.attention import uniform
from pipeline_lib.networks.dropout import Dropout
from pipeline_lib.networks.lstm import glorot_linear, initialise
from pipeline_lib.networks.outputs import ModelOutputs, uniform_importance

WINDOW = 10
"""Frames of a window."""

FRAMES_APART = 8
"""Frames from the first to the second frame of late fusion."""


class LateFusion(nn.Module):
    """Two frames, joined at the first fully connected layer."""

    def __init__(self, *, channels: int, num_classes: int, units: int, dropout: float) -> None:
        """Initialise random weights."""
        super().__init__()
        self.dropout = Dropout(dropout)
        self.join = glorot_linear(2 * channels, units)
        self.head = glorot_linear(units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
        """Return the model's outputs; attention and importance are uniform."""
        pooled_BFD = repeat_last(features_BTKKD.mean(dim=(2, 3)), valid_steps_B, FRAMES_APART)
        pairs_BTD = torch.cat((pooled_BFD[:, :-FRAMES_APART], pooled_BFD[:, FRAMES_APART:]), dim=2)
        hidden_BTU = torch.relu(self.join(self.dropout(pairs_BTD)))
        return _without_attention(self.head(self.dropout(hidden_BTU)), features_BTKKD, valid_steps_B)


class ConvolutionalFusion(nn.Module):
    """3-D convolutions over windows of frames, the mean over the cells, and a linear layer.

    Windows overlap, and all share the same convolutions: a stride within a window is a dilation over the clip.
    """

    def __init__(self, kernels: tuple[int, ...], *, channels: int, num_classes: int, units: int, dropout: float) -> None:
        """Initialise random weights; `kernels` are the convolutions' steps, each with a stride of 2 for the next."""
        super().__init__()
        self.convolutions = nn.ModuleList(
            TimeConvolution(units if layer else channels, units, kernel, dilation=2**layer)
            for layer, kernel in enumerate(kernels)
        )
        self.dropout = Dropout(dropout)
        self.head = glorot_linear(units, num_classes)

    def forward(self, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
        """Return the model's outputs; attention and importance are uniform."""
        maps_BFKKU = repeat_last(features_BTKKD, valid_steps_B, WINDOW - 1)
        for convolution in self.convolutions:
            maps_BFKKU = torch.relu(convolution(maps_BFKKU))
        logits_BTC = self.head(self.dropout(maps_BFKKU.mean(dim=(2, 3))))
        return _without_attention(logits_BTC, features_BTKKD, valid_steps_B)


class EarlyFusion(ConvolutionalFusion):
    """One convolution over all frames of a window."""

    def __init__(self, *, channels: int, num_classes: int, units: int, dropout: float) -> None:
        super().__init__((WINDOW,), channels=channels, num_classes=num_classes, units=units, dropout=dropout)


class SlowFusion(ConvolutionalFusion):
    """Three convolutions, each over few steps."""

    def __init__(self, *, channels: int, num_classes: int, units: int, dropout: float) -> None:
        super().__init__((4, 2, 2), channels=channels, num_classes=num_classes, units=units, dropout=dropout)


class TimeConvolution(nn.Module):
    """A convolution over time (dilated, without padding) and 3x3 cells (same padding) of maps with channels last.

    It is computed as one 2-D convolution for each step of the kernel, as cuDNN's 3-D ones are slow (docs/performance.md).
    """

    def __init__(self, channels: int, units: int, kernel: int, *, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, units, (kernel, 3, 3), padding=(0, 1, 1), dilation=(dilation, 1, 1))
        initialise(self.convolution)

    def forward(self, maps_BFKKD: torch.Tensor) -> torch.Tensor:
        """Return maps with fewer frames, channels last."""
        weight_UDS33, bias_U, dilation = self.convolution.weight, self.convolution.bias, self.convolution.dilation[0]
        assert bias_U is not None
        num_steps = weight_UDS33.shape[2]
        num_frames = maps_BFKKD.shape[1] - (num_steps - 1) * dilation
        maps_NUKK = bias_U[:, None, None]
        for step in range(num_steps):
            frames_NDKK = maps_BFKKD[:, step * dilation :][:, :num_frames].flatten(0, 1).permute(0, 3, 1, 2)
            maps_NUKK = maps_NUKK + nn.functional.conv2d(frames_NDKK, weight_UDS33[:, :, step], padding=1)
        return maps_NUKK.permute(0, 2, 3, 1).unflatten(0, (len(maps_BFKKD), num_frames))


def repeat_last(features_BTX: torch.Tensor, valid_steps_B: torch.Tensor, more: int) -> torch.Tensor:
    """Return T + `more` frames, where the last valid frame stands for all behind it; X is any number of axes."""
    frames_F = torch.arange(features_BTX.shape[1] + more, device=features_BTX.device)
    index_BF = torch.minimum(frames_F, valid_steps_B[:, None] - 1)
    clips_B1 = torch.arange(len(features_BTX), device=features_BTX.device)[:, None]
    return features_BTX[clips_B1, index_BF]


def _without_attention(logits_BTC: torch.Tensor, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> ModelOutputs:
    attention_BTKK = uniform(features_BTKKD)
    return ModelOutputs(logits_BTC, attention_BTKK, uniform_importance(attention_BTKK, valid_steps_B))
