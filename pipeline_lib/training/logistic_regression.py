"""Multinomial logistic regression with an L2 penalty, fitted to several label sets of the same examples at once.

The objective is the mean cross-entropy plus penalty / 2 times the squared norm of the weights of standardised features; biases
are not penalised. It is minimised by preconditioned nonlinear conjugate gradients with a line search, in the basis of the
features' principal axes. There the Hessian is close to diagonal, and the fits share the diagonal up to a factor per class.

Shape suffixes: F fits, N examples, M validation examples, D features, K = min(N, D) principal axes, J = K + 1 with a constant
for the bias, C classes, P penalties.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Examples = tuple[Tensor, Tensor]
"""Features, and the labels of each fit."""

PATH_TOLERANCE, TOLERANCE = 1e-4, 1e-10
"""Maximum excess of an objective over its minimum, in nats: while comparing penalties, and of the returned fits."""

MAX_ITERATIONS = 3000

REFRESH = 10
"""Iterations between updates of the preconditioner, at which converged fits are also removed from the batch."""

MAX_LINE_TRIALS, LINE_SLOPE_RATIO = 5, 0.1
"""A line search stops after this many trials, or when the slope has fallen to this fraction of its initial value."""

ABSENT = -1e4
"""Bias of a class without examples in a label set, which makes its probability 0 in any precision."""

TINY = 1e-12
"""Added to denominators that may be 0."""


@dataclass(frozen=True)
class Classifiers:
    """F linear classifiers on the same features, in float64."""

    weight_FCD: Tensor
    bias_FC: Tensor
    chosen_F: Tensor
    """Index of the penalty with the lowest validation loss."""

    def probabilities(self, features_ND: Tensor) -> Tensor:
        """Return probability_FCN."""
        logits_FCN = self.weight_FCD @ features_ND.to(self.weight_FCD).T + self.bias_FC[:, :, None]
        return logits_FCN.softmax(dim=1)


@torch.no_grad()
def fit_classifiers(train: Examples, val: Examples, *, num_classes: int, penalty_PF: Tensor, default: int = 0) -> Classifiers:
    """Fit every label set with every penalty and return each label set's fit with the lowest validation loss.

    Each penalty's fits start from those of the previous penalty, so order penalties from strong to weak. On a CPU penalties
    are compared in float32. Validation examples of a class that a label set does not contain are ignored.

    Args:
        train: features_ND and label_FN.
        val: features_MD and label_FM.
        num_classes: number of classes; labels are 0 to `num_classes` - 1.
        penalty_PF: weights of the squared norm.
        default: index of the penalty for label sets without validation examples.
    """
    features_ND, label_FN = train[0].double(), train[1]
    mean_D, scale_D = _standardisation(features_ND)
    train_ND, val_MD = ((part.double() - mean_D) / scale_D for part in (features_ND, val[0]))
    # On the CPU, because PyTorch's lazy initialisation of linear algebra on a GPU is not thread-safe.
    axes_DK = torch.linalg.eigh((train_ND.T @ train_ND).cpu()).eigenvectors[:, -min(train_ND.shape) :].to(train_ND)
    train_NJ, val_MJ = (_with_constant(part @ axes_DK) for part in (train_ND, val_MD))
    best_FCJ, chosen_F = _compare(train_NJ, label_FN, val_MJ, val[1], num_classes, penalty_PF, default)
    best_FCJ = minimise(train_NJ, label_FN, penalty_PF.gather(0, chosen_F[None])[0], best_FCJ, TOLERANCE)
    weight_FCD = best_FCJ[:, :, :-1] @ axes_DK.T / scale_D
    return Classifiers(weight_FCD, best_FCJ[:, :, -1] - weight_FCD @ mean_D, chosen_F)


def _standardisation(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return each feature's mean and standard deviation; the latter is 1 for features that are constant up to rounding."""
    scale_D, mean_D = torch.std_mean(features_ND, dim=0, correction=0)
    rounding_D = 10 * torch.finfo(torch.float64).eps * features_ND.abs().amax(dim=0)
    return mean_D, torch.where(scale_D > rounding_D, scale_D, 1.0)


def _with_constant(axes_NK: Tensor) -> Tensor:
    return torch.cat([axes_NK, torch.ones_like(axes_NK[:, :1])], dim=1)


def _compare(
    train_NJ: Tensor, label_FN: Tensor, val_MJ: Tensor, val_label_FM: Tensor, num_classes: int, penalty_PF: Tensor, default: int
) -> tuple[Tensor, Tensor]:
    """Return weight_FCJ of each label set's best fit and the index of its penalty."""
    precision = torch.float32 if train_NJ.device.type == "cpu" else torch.float64
    weight_FCJ = best_FCJ = _class_frequencies(label_FN, num_classes, train_NJ)
    chosen_F = torch.zeros_like(label_FN[:, 0])
    lowest_F = torch.full(chosen_F.shape, math.inf, dtype=torch.float64, device=chosen_F.device)
    for index, penalty_F in enumerate(penalty_PF):
        weight_FCJ = minimise(train_NJ.to(precision), label_FN, penalty_F, weight_FCJ, PATH_TOLERANCE)
        loss_F = _known_loss(weight_FCJ, val_MJ, val_label_FM).nan_to_num(-1.0 if index == default else math.inf)
        is_lower_F = (loss_F < lowest_F) | (index == 0)
        best_FCJ = torch.where(is_lower_F[:, None, None], weight_FCJ, best_FCJ)
        lowest_F = torch.where(is_lower_F, loss_F, lowest_F)
        chosen_F = torch.where(is_lower_F, index, chosen_F)
    return best_FCJ, chosen_F


def _class_frequencies(label_FN: Tensor, num_classes: int, train_NJ: Tensor) -> Tensor:
    """Return weight_FCJ of the best classifiers that use the constant alone."""
    count_FC = train_NJ.new_zeros(len(label_FN), num_classes)
    count_FC.scatter_add_(1, label_FN, torch.ones_like(label_FN, dtype=train_NJ.dtype))
    weight_FCJ = train_NJ.new_zeros(*count_FC.shape, train_NJ.shape[1])
    weight_FCJ[:, :, -1] = (count_FC / len(train_NJ)).log().clamp_min(ABSENT)
    return weight_FCJ


def _known_loss(weight_FCJ: Tensor, val_MJ: Tensor, label_FM: Tensor) -> Tensor:
    """Return each fit's mean loss over examples of classes in its label set, nan if there are none."""
    logits_FCM = weight_FCJ @ val_MJ.T
    is_known_FM = weight_FCJ[:, :, -1].gather(1, label_FM) > ABSENT
    loss_FM = logits_FCM.logsumexp(dim=1) - logits_FCM.gather(1, label_FM[:, None])[:, 0]
    return loss_FM.where(is_known_FM, torch.nan).nanmean(dim=1)


@torch.no_grad()
def minimise(train_NJ: Tensor, label_FN: Tensor, penalty_F: Tensor, start_FCJ: Tensor, tolerance: float) -> Tensor:
    """Return weight_FCJ (float64) whose objectives exceed their minima by at most `tolerance`.

    Computes in the precision of `train_NJ`, whose last column is the constant. Fits that do not converge are logged.
    """
    found_FCJ = start_FCJ.clone()
    active_F = torch.arange(len(label_FN), device=label_FN.device)
    descent = _Descent(train_NJ, label_FN, penalty_F.to(train_NJ), start_FCJ.to(train_NJ))
    for iteration in range(MAX_ITERATIONS):
        if iteration % REFRESH == 0:
            descent.refresh()
            is_active_F = descent.excess() > tolerance
            found_FCJ[active_F] = descent.weight_FCJ.double()
            active_F = active_F[is_active_F]
            if len(active_F) == 0:
                return found_FCJ
            descent.keep(is_active_F)
        descent.step()
    logger.warning("logistic regression: %d of %d fits have not converged", len(active_F), len(label_FN))
    return found_FCJ


class _Descent:
    """Conjugate gradient descent of all fits that have not converged."""

    def __init__(self, train_NJ: Tensor, label_FN: Tensor, penalty_F: Tensor, weight_FCJ: Tensor) -> None:
        self.train_NJ, self.variance_J = train_NJ, train_NJ.square().mean(dim=0)
        self.label_F1N = label_FN[:, None]
        self.penalty_F1J = penalty_F[:, None, None].repeat(1, 1, len(self.variance_J))
        self.penalty_F1J[:, :, -1] = 0
        self.weight_FCJ = weight_FCJ
        self.logits_FCN = self._project(weight_FCJ)
        self.probability_FCN = self.logits_FCN.softmax(dim=1)
        self.gradient_FCJ = self._gradient()
        self.gradient_before_FCJ = self.direction_FCJ = torch.zeros_like(weight_FCJ)
        self.decrement_F = torch.ones_like(penalty_F)
        self.refresh()

    def refresh(self) -> None:
        """Update the diagonal approximation of the Hessian."""
        curvature_FC = (self.probability_FCN * (1 - self.probability_FCN)).mean(dim=2)
        self.hessian_FCJ = curvature_FC[:, :, None] * self.variance_J + self.penalty_F1J + TINY

    def excess(self) -> Tensor:
        """Return an upper bound of how much each objective exceeds its minimum.

        The objective is `penalty`-strongly convex in the weights, so a gradient g bounds the excess by |g|^2 / (2 penalty).
        Biases add the gain of a Newton step.
        """
        curvature_FCJ = self.penalty_F1J.repeat(1, self.gradient_FCJ.shape[1], 1)
        curvature_FCJ[:, :, -1] = self.hessian_FCJ[:, :, -1]
        return (self.gradient_FCJ.square() / curvature_FCJ).sum(dim=(1, 2)) / 2

    def keep(self, is_active_F: Tensor) -> None:
        """Drop all other fits."""
        if not is_active_F.all():
            for name, value in vars(self).items():
                if not name.startswith(("train", "variance")):
                    setattr(self, name, value[is_active_F])

    def step(self) -> None:
        """Minimise along the Polak-Ribiere direction, or along the preconditioned gradient where that one does not descend."""
        steepest_FCJ = -self.gradient_FCJ / self.hessian_FCJ
        decrement_F = -_dot(steepest_FCJ, self.gradient_FCJ)
        beta_F = ((decrement_F + _dot(steepest_FCJ, self.gradient_before_FCJ)) / self.decrement_F).clamp_min(0)
        conjugate_FCJ = steepest_FCJ + beta_F[:, None, None] * self.direction_FCJ
        slope_F = _dot(conjugate_FCJ, self.gradient_FCJ)
        self.direction_FCJ = torch.where((slope_F < 0)[:, None, None], conjugate_FCJ, steepest_FCJ)
        self.decrement_F, self.gradient_before_FCJ = decrement_F + TINY, self.gradient_FCJ
        self._advance()

    def _advance(self) -> None:
        change_FCN = self._project(self.direction_FCJ)
        step_F11 = self._line_search(change_FCN)[:, None, None]
        self.weight_FCJ = self.weight_FCJ + step_F11 * self.direction_FCJ
        self.logits_FCN = self.logits_FCN + step_F11 * change_FCN
        self.gradient_FCJ = self._gradient()

    def _line_search(self, change_FCN: Tensor) -> Tensor:
        """Return the step sizes that minimise the objectives, by Newton's method with bracketing."""
        step_F = low_F = torch.zeros_like(self.decrement_F)
        slope_F, curvature_F = self._slope(step_F, change_FCN)
        high_F = torch.where(slope_F < 0, math.inf, step_F)
        flat_F = LINE_SLOPE_RATIO * slope_F.abs()
        for _ in range(MAX_LINE_TRIALS):
            newton_F = step_F - slope_F / curvature_F
            step_F = torch.where((low_F <= newton_F) & (newton_F <= high_F), newton_F, (low_F + high_F) / 2)
            self.probability_FCN = (self.logits_FCN + step_F[:, None, None] * change_FCN).softmax(dim=1)
            slope_F, curvature_F = self._slope(step_F, change_FCN)
            if (slope_F.abs() <= flat_F).all():
                break
            low_F, high_F = torch.where(slope_F < 0, step_F, low_F), torch.where(slope_F < 0, high_F, step_F)
        return step_F

    def _slope(self, step_F: Tensor, change_FCN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and second derivatives along the direction; `probability_FCN` must be that of this step."""
        penalised_FCJ = self.penalty_F1J * self.direction_FCJ
        weighted_FCN = self.probability_FCN * change_FCN
        mean_FN = weighted_FCN.sum(dim=1)
        variance_FN = (torch.linalg.vecdot(weighted_FCN, change_FCN, dim=1) - mean_FN.square()).clamp_min(0)
        bend_F = _dot(penalised_FCJ, self.direction_FCJ)
        own_F = change_FCN.gather(1, self.label_F1N).mean(dim=(1, 2))
        slope_F = mean_FN.mean(dim=1) - own_F + _dot(penalised_FCJ, self.weight_FCJ) + step_F * bend_F
        return slope_F, variance_FN.mean(dim=1) + bend_F + TINY

    def _project(self, weight_FCJ: Tensor) -> Tensor:
        """Return the logits, (F, C, N)."""
        return (weight_FCJ.flatten(0, 1) @ self.train_NJ.T).unflatten(0, weight_FCJ.shape[:2])

    def _gradient(self) -> Tensor:
        minus_F1N = torch.full_like(self.label_F1N, -1, dtype=self.train_NJ.dtype)
        residual_FCN = self.probability_FCN.scatter_add(1, self.label_F1N, minus_F1N)
        loss_FCJ = (residual_FCN.flatten(0, 1) @ self.train_NJ).view_as(self.weight_FCJ) / len(self.train_NJ)
        return loss_FCJ + self.penalty_F1J * self.weight_FCJ


def _dot(first_FCJ: Tensor, second_FCJ: Tensor) -> Tensor:
    return (first_FCJ * second_FCJ).sum(dim=(1, 2))
