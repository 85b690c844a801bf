"""The models against float64 NumPy, written from the article's equations and sharing no code with them."""

# B batch, T frames of a clip, K grid side, D channels, U units, C classes

import numpy as np
import pytest
import torch

from pipeline_lib.models.registry import build_model
from pipeline_lib.params import TrainParams

SIZES = [(8, 3, 4, 6), (16, 5, 7, 10), (32, 7, 11, 16)]
SIZE_NAMES = ["small", "medium", "large"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def lstm_gates(z, c):
    """Gates in the order i, f, g, o along the first axis."""
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def reference_alstm(p, X, valid):
    """One clip, X of (T, K, K, D)."""
    T, K, _, D = X.shape
    m = X[:valid].reshape(-1, D).mean(axis=0)
    h = np.tanh(p["initial_h.weight"] @ m + p["initial_h.bias"])
    c = np.tanh(p["initial_c.weight"] @ m + p["initial_c.bias"])
    logits, maps = [], []
    for t in range(T):
        from_features = p["score_features.weight"] @ X[t].reshape(-1, D).mean(axis=0) + p["score_features.bias"]
        from_state = p["score_state.weight"] @ h + p["score_state.bias"]
        a = softmax(p["score.weight"] @ np.tanh(from_features + from_state) + p["score.bias"]).reshape(K, K)
        x = np.zeros(D)
        for row in range(K):
            for column in range(K):
                x += a[row, column] * X[t, row, column]
        h, c = lstm_gates(p["cell.input.weight"] @ x + p["cell.input.bias"] + p["cell.recurrent.weight"] @ h, c)
        logits.append(p["head.weight"] @ h + p["head.bias"])
        maps.append(a)
    return np.array(logits), np.array(maps)


def convolve_same(kernel, image):
    """3x3 correlation of an image (channels, K, K) with zeros around it; kernel (out, in, 3, 3)."""
    K = image.shape[1]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((kernel.shape[0], K, K))
    for row in range(K):
        for column in range(K):
            out[:, row, column] = np.tensordot(kernel, padded[:, row : row + 3, column : column + 3], axes=3)
    return out


def reference_conv_alstm(p, X, valid):
    """One clip, X of (T, K, K, D); the valid frames play no role."""
    T, K = X.shape[:2]
    U = p["score_state.weight"].shape[0]
    h, c = np.zeros((U, K, K)), np.zeros((U, K, K))
    logits, maps = [], []
    for t in range(T):
        scores = np.zeros((K, K))
        for row in range(K):
            for column in range(K):
                from_features = p["score_features.weight"] @ X[t, row, column] + p["score_features.bias"]
                from_state = p["score_state.weight"] @ h[:, row, column] + p["score_state.bias"]
                scores[row, column] = p["score.weight"][0] @ np.tanh(from_features + from_state) + p["score.bias"][0]
        a = softmax(scores)
        x = (X[t] * a[:, :, None]).transpose(2, 0, 1)
        z = convolve_same(p["cell.input.weight"], x) + p["cell.input.bias"][:, None, None]
        h, c = lstm_gates(z + convolve_same(p["cell.recurrent.weight"], h), c)
        logits.append(p["head.weight"] @ h.transpose(1, 2, 0).reshape(-1) + p["head.bias"])
        maps.append(a)
    return np.array(logits), np.array(maps)


REFERENCES = {"alstm": reference_alstm, "conv_alstm": reference_conv_alstm}


def make_model(name, channels, grid, num_classes, units):
    """Build a model whose biases are not zero, so that a forgotten one shows."""
    params = TrainParams(alstm_units=units, conv_alstm_units=units)
    torch.manual_seed(0)
    model = build_model(name, channels=channels, grid=grid, num_classes=num_classes, params=params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("size", SIZES, ids=SIZE_NAMES)
@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_with_the_equations(name, size):
    channels, grid, num_classes, units = size
    model = make_model(name, channels, grid, num_classes, units)
    features = torch.rand(3, 30, grid, grid, channels, generator=torch.Generator().manual_seed(1)) * 3
    valid_frames = torch.tensor([30, 17, 1])
    with torch.no_grad():
        logits, attention = model(features, valid_frames)
    weights = {key: value.double().numpy() for key, value in model.state_dict().items()}
    for clip in range(3):
        wanted_logits, wanted_maps = REFERENCES[name](weights, features[clip].double().numpy(), int(valid_frames[clip]))
        np.testing.assert_allclose(logits[clip].numpy(), wanted_logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(attention[clip].numpy(), wanted_maps, rtol=0, atol=1e-5)
