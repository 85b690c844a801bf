"""Grad-CAM (Selvaraju et al. 2017) on the last feature map of a model's backbone, for any model over cached features.

    y = mean_t (logit_tc - mean_k logit_tk)      over the valid steps t; c: the class with the highest mean probability
    w_t = mean_i dy / dX_ti                      one weight a channel
    m_ti = relu(w_t . X_ti)                      scaled to sum to 1 over the cells of a step

The class is the predicted one, so that no label is used. The paper takes the logit itself. But a number that is added to all
logits changes no probability, and so must not change the map: with few classes, what all of them have in common can outweigh
what tells one from the others. For `mean_pool`, w_t is the class's row of the linear layer less the mean row, and the map is
the class activation map of Zhou et al. 2016. A step in which no cell speaks for the class has a uniform map. A model of
several streams has them side by side in X, and the map is of all of them.
"""

# B batch, T steps of a clip, K grid side, D channels, C classes

from __future__ import annotations

import torch
from torch import nn

from pipeline_lib.networks.outputs import valid_mask


def grad_cam(model: nn.Module, features_BTKKD: torch.Tensor, valid_steps_B: torch.Tensor) -> torch.Tensor:
    """Return map_BTKK, which sums to 1 over the cells of each step."""
    features_BTKKD = features_BTKKD.detach().requires_grad_()
    logits_BTC, _, _ = model(features_BTKKD, valid_steps_B)
    valid_BT1 = valid_mask(valid_steps_B, logits_BTC.shape[1]).unsqueeze(2)
    with torch.no_grad():
        class_B = (logits_BTC.softmax(dim=2) * valid_BT1).sum(dim=1).argmax(dim=1)
    centred_BTC = logits_BTC - logits_BTC.mean(dim=2, keepdim=True)
    score_BC = (centred_BTC * valid_BT1).sum(dim=1) / valid_steps_B[:, None]
    [gradient_BTKKD] = torch.autograd.grad(score_BC.gather(1, class_B[:, None]).sum(), features_BTKKD)
    with torch.no_grad():
        weight_BT11D = gradient_BTKKD.mean(dim=(2, 3), keepdim=True)
        return _shares(torch.relu((weight_BT11D * features_BTKKD).sum(dim=4)))


def _shares(level_BTKK: torch.Tensor) -> torch.Tensor:
    """Scale each step's map to a sum of 1; a map of zeros becomes uniform."""
    total_BT11 = level_BTKK.sum(dim=(2, 3), keepdim=True)
    uniform = 1 / (level_BTKK.shape[2] * level_BTKK.shape[3])
    return torch.where(total_BT11 > 0, level_BTKK / total_BT11, uniform)
