"""The batched logistic regression against scikit-learn's, which is run to its own optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline_lib.training.logistic_regression import Classifiers, fit_classifiers

pytestmark = pytest.mark.usefixtures("single_thread")

PENALTIES = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
CLASSES = 4


def correlated(num_examples: int, num_features: int, *, seed: int, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return features like a ReLU network's means (not negative, correlated, of many scales), and labels that they tell."""
    rng = np.random.default_rng(seed)
    label_N = np.arange(num_examples) % CLASSES
    mixing = np.random.default_rng(0).normal(size=(8, num_features)) / np.arange(1, 9)[:, None]
    hidden = rng.normal(size=(num_examples, 8))
    hidden[:, :CLASSES] += signal * np.eye(CLASSES)[label_N]
    noise = 0.1 * rng.normal(size=(num_examples, num_features))
    return np.maximum(hidden @ mixing + noise + 0.3, 0) * np.logspace(-2, 2, num_features), label_N


def penalties(*values: float, fits: int = 1) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, fits)


def fit(train, labels, val, val_labels, penalty_PF) -> Classifiers:
    data = [(torch.tensor(x), torch.tensor(np.atleast_2d(y))) for x, y in ((train, labels), (val, val_labels))]
    return fit_classifiers(*data, num_classes=CLASSES, penalty_PF=penalty_PF)


def reference(features_ND, label_N, penalty):
    """Return scikit-learn's fit. One with two classes is penalised as one logistic, which is twice as much."""
    twice = 1 if len(np.unique(label_N)) > 2 else 2
    inverse = twice / (penalty * len(label_N))
    model = LogisticRegression(C=inverse, tol=1e-9, max_iter=50_000)
    scaler = StandardScaler().fit(features_ND)
    return scaler, model.fit(scaler.transform(features_ND), label_N)


def check(train, label_N, val, val_label_M, penalty):
    """Compare probabilities' losses, and the penalised objective, with scikit-learn's."""
    found = fit(train, label_N, val, val_label_M, penalties(penalty))
    scaler, model = reference(train, label_N, penalty)
    known = np.unique(label_N)
    losses = []
    for features, label in ((train, label_N), (val, val_label_M)):
        expected_NC = np.zeros((len(features), CLASSES))
        expected_NC[:, known] = model.predict_proba(scaler.transform(features))
        found_NC = found.probabilities(torch.tensor(features))[0].T.numpy()
        np.testing.assert_allclose(found_NC[:, np.setdiff1d(range(CLASSES), known)], 0)
        losses.append([log_loss(label, probability_NC, labels=range(CLASSES)) for probability_NC in (found_NC, expected_NC)])
    assert losses[1][0] == pytest.approx(losses[1][1], abs=1e-4)
    squares = [np.square(found.weight_FCD[0].numpy() * scaler.scale_).sum()]
    squares.append(np.square(model.coef_).sum() / (1 if len(known) > 2 else 2))
    ours, theirs = (loss + penalty / 2 * square for loss, square in zip(losses[0], squares, strict=True))
    assert ours == pytest.approx(theirs, abs=1e-6)
    return found


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("signal", [0.5, 20.0], ids=["overlapping", "separable"])
def test_scikit_learns_optimum(penalty, signal):
    check(*correlated(200, 20, seed=1, signal=signal), *correlated(80, 20, seed=2, signal=signal), penalty)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_more_features_than_examples(penalty):
    check(*correlated(30, 70, seed=1), *correlated(40, 70, seed=2), penalty)


@pytest.mark.parametrize("known", [(0, 1, 3), (1, 2)])
def test_classes_that_the_labels_lack(known):
    train, label_N = correlated(120, 12, seed=1)
    val, val_label_M = correlated(60, 12, seed=2)
    label_N, keep_M = np.array(known)[label_N % len(known)], np.isin(val_label_M, known)
    check(train, label_N, val[keep_M], val_label_M[keep_M], 0.01)


def test_constant_features_have_no_weight():
    train, label_N = correlated(120, 12, seed=1)
    train[:, 3], train[:, 5] = 0.1, 0.0
    found = check(train, label_N, *correlated(60, 12, seed=2), 0.01)
    assert found.weight_FCD[0, :, [3, 5]].abs().max() < 1e-12


def test_nothing_but_constant_features_leaves_the_frequencies():
    label_N = np.array([0] * 6 + [1] * 3 + [2])
    found = fit(np.full((10, 3), 0.7), label_N, np.zeros((1, 3)), [0], penalties(0.01))
    np.testing.assert_allclose(found.probabilities(torch.full((1, 3), 0.7))[0, :, 0], [0.6, 0.3, 0.1, 0], atol=1e-4)


def test_one_class_is_always_said():
    train, _ = correlated(40, 6, seed=1)
    found = fit(train, np.full(40, 2), train, np.full(40, 2), penalties(*PENALTIES))
    assert found.probabilities(torch.tensor(train))[0, 2].min() == 1
    assert found.chosen_F.tolist() == [0]


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_every_fit_of_a_batch_is_what_it_is_alone(precision):
    """Labels that features tell, permuted ones, and ones of a single class leave the batch at different times."""
    train, label_N = correlated(150, 10, seed=1, signal=5)
    val, val_label_M = correlated(60, 10, seed=2, signal=5)
    rng = np.random.default_rng(0)
    labels = np.stack([label_N, rng.permutation(label_N), np.ones_like(label_N), rng.permutation(label_N)])
    val_labels = np.stack([val_label_M, rng.permutation(val_label_M), val_label_M, rng.permutation(val_label_M)])
    train, val = (torch.tensor(part, dtype=precision).numpy() for part in (train, val))
    together = fit(train, labels, val, val_labels, penalties(*PENALTIES, fits=4))
    for index in range(4):
        alone = fit(train, labels[index], val, val_labels[index], penalties(*PENALTIES))
        assert together.chosen_F[index] == alone.chosen_F[0]
        probabilities = (part.probabilities(torch.tensor(val)) for part in (together, alone))
        np.testing.assert_allclose(next(probabilities)[index], next(probabilities)[0], atol=2e-4)


@pytest.mark.parametrize("seed", range(6))
def test_validation_chooses_scikit_learns_penalty(seed):
    train, label_N = correlated(100, 15, seed=seed, signal=0.3 * seed)
    val, val_label_M = correlated(60, 15, seed=100 + seed, signal=0.3 * seed)
    losses = []
    for penalty in PENALTIES:
        scaler, model = reference(train, label_N, penalty)
        losses.append(log_loss(val_label_M, model.predict_proba(scaler.transform(val))))
    assert fit(train, label_N, val, val_label_M, penalties(*PENALTIES)).chosen_F.tolist() == [int(np.argmin(losses))]


def test_the_default_penalty_where_validation_says_nothing():
    train, label_N = correlated(40, 6, seed=1)
    known_N = label_N % 2
    data = [(torch.tensor(train), torch.tensor(known_N[None])), (torch.tensor(train[:2]), torch.tensor([[2, 3]]))]
    found = fit_classifiers(*data, num_classes=CLASSES, penalty_PF=penalties(*PENALTIES), default=3)
    assert found.chosen_F.tolist() == [3]
    none = (torch.empty(0, 6), torch.empty(1, 0, dtype=torch.int64))
    found = fit_classifiers(data[0], none, num_classes=CLASSES, penalty_PF=penalties(*PENALTIES), default=2)
    assert found.chosen_F.tolist() == [2]
