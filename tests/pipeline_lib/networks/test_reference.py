"""The models against float64 NumPy, written from the article's equations and sharing no code with them."""

# B batch, T frames of a clip, K grid side, D channels, U units, C classes

import numpy as np
import pytest
import torch

from pipeline_lib.networks.normalisation import Normalised
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import TrainParams
from tests.pipeline_lib.networks.sizes import split_channels

SIZES = [(8, 3, 4, 6), (16, 5, 7, 10), (32, 7, 11, 16)]
SIZE_NAMES = ["small", "medium", "large"]

ARTICLE_CONV_ALSTM = {"rescale_glimpse": False, "head_channels": None, "normalise": False}

VARIANTS = {
    "alstm": ("alstm", {"scorer": "pooled"}),
    "alstm, local scorer": ("alstm", {"scorer": "local"}),
    "alstm, state not carried": ("alstm", {"scorer": "pooled", "carry_state": False}),
    "alstm, local, 3 layers": ("alstm", {"scorer": "local", "layers": 3}),
    "alstm, 2 layers, not carried": ("alstm", {"scorer": "pooled", "layers": 2, "carry_state": False}),
    "alstm, normalised": ("alstm", {"scorer": "local", "normalise": True}),
    "conv_alstm": ("conv_alstm", ARTICLE_CONV_ALSTM),
    "conv_alstm, state not carried": ("conv_alstm", ARTICLE_CONV_ALSTM | {"carry_state": False}),
    "conv_alstm, 2 layers": ("conv_alstm", ARTICLE_CONV_ALSTM | {"layers": 2}),
    "conv_alstm, glimpses rescaled": ("conv_alstm", ARTICLE_CONV_ALSTM | {"rescale_glimpse": True}),
    "conv_alstm, convolutional head": ("conv_alstm", ARTICLE_CONV_ALSTM | {"head_channels": 5}),
    "conv_alstm, default": ("conv_alstm", {}),
    "attention_pool, local": ("attention_pool", {"scorer": "local"}),
    "attention_pool, pooled": ("attention_pool", {"scorer": "pooled"}),
    "lrcn": ("lrcn", {}),
    "lrcn, 2 layers": ("lrcn", {"layers": 2}),
    "mean_pool": ("mean_pool", {}),
    **{f"motion_conv_alstm, {motion}": ("motion_conv_alstm", {"motion": motion}) for motion in ("state", "map", "magnitude")},
    "motion_conv_alstm, flat head, 2 layers": ("motion_conv_alstm", ARTICLE_CONV_ALSTM | {"layers": 2}),
    **{f"motion_alstm, {motion}": ("motion_alstm", {"motion": motion}) for motion in ("state", "map", "magnitude")},
    "motion_alstm, pooled, 2 layers": ("motion_alstm", {"scorer": "pooled", "layers": 2}),
    "motion_alstm, pooled, map": ("motion_alstm", {"scorer": "pooled", "motion": "map"}),
    "temporal_attention": ("temporal_attention", {}),
    "temporal_attention, 1 step": ("temporal_attention", {"decoder_steps": 1}),
    "temporal_attention, two streams": ("temporal_attention", {"normalise": True}),
    "temporal_attention, two streams, local": ("temporal_attention", {"spatial": "local"}),
    "fusion_early": ("fusion_early", {}),
    "fusion_late": ("fusion_late", {}),
    "fusion_slow": ("fusion_slow", {}),
}
SECOND_CHANNELS = 3
"""Channels of the second stream, in variants with two streams."""


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


def linear(p, name, x):
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0)


def attention_of_vectors(p, X, h, scorer):
    """Attention (K, K) over one frame X (K, K, D), from the frame and a state vector h, or from the frame alone."""
    K, _, D = X.shape
    from_state = 0 if h is None else linear(p, "attention.state", h)
    if scorer == "pooled":
        hidden = np.tanh(linear(p, "attention.features", X.reshape(-1, D).mean(axis=0)) + from_state)
        return softmax(linear(p, "attention.score", hidden)).reshape(K, K)
    scores = np.zeros((K, K))
    for row in range(K):
        for column in range(K):
            hidden = np.tanh(linear(p, "attention.features", X[row, column]) + from_state)
            scores[row, column] = linear(p, "attention.score", hidden)[0]
    return softmax(scores)


def weighted_sum(a, X):
    x = np.zeros(X.shape[2])
    for row in range(a.shape[0]):
        for column in range(a.shape[1]):
            x += a[row, column] * X[row, column]
    return x


def reference_alstm(p, X, valid, options):
    """One clip, X of (T, K, K, D)."""
    T, K, _, D = X.shape
    layers, scorer, carry = options["layers"], options["scorer"], options["carry_state"]
    m = X[:valid].reshape(-1, D).mean(axis=0)
    h = [np.tanh(linear(p, f"initial_h.{layer}", m)) for layer in range(layers)]
    c = [np.tanh(linear(p, f"initial_c.{layer}", m)) for layer in range(layers)]
    logits, maps = [], []
    for t in range(T):
        a = np.full((K, K), 1 / K**2) if scorer is None else attention_of_vectors(p, X[t], h[-1], scorer)
        x = weighted_sum(a, X[t])
        for layer in range(layers):
            before_h, before_c = (h[layer], c[layer]) if carry else (np.zeros_like(h[layer]), np.zeros_like(c[layer]))
            z = linear(p, f"cells.{layer}.input", x) + linear(p, f"cells.{layer}.recurrent", before_h)
            h[layer], c[layer] = lstm_gates(z, before_c)
            x = h[layer]
        logits.append(linear(p, "head", h[-1]))
        maps.append(a)
    return np.array(logits), np.array(maps)


def reference_frame_pool(p, X, valid, options):
    """One clip; every frame by itself."""
    K = X.shape[1]
    scorer = options["scorer"]
    maps = [np.full((K, K), 1 / K**2) if scorer is None else attention_of_vectors(p, frame, None, scorer) for frame in X]
    logits = [linear(p, "head", weighted_sum(a, frame)) for a, frame in zip(maps, X, strict=True)]
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


def convolutional_head(p, h, a):
    hidden = convolve_same(p["head.convolution.weight"], h) + p["head.convolution.bias"][:, None, None]
    return linear(p, "head.classify", weighted_sum(a, np.maximum(hidden, 0).transpose(1, 2, 0)))


def reference_conv_alstm(p, X, valid, options):
    """One clip, X of (T, K, K, D); the valid frames play no role."""
    T, K = X.shape[:2]
    layers, carry = options["layers"], options["carry_state"]
    U = p["attention.state.weight"].shape[0]
    h, c = np.zeros((layers, U, K, K)), np.zeros((layers, U, K, K))
    logits, maps = [], []
    for t in range(T):
        scores = np.zeros((K, K))
        for row in range(K):
            for column in range(K):
                from_features = linear(p, "attention.features", X[t, row, column])
                from_state = linear(p, "attention.state", h[-1][:, row, column])
                scores[row, column] = linear(p, "attention.score", np.tanh(from_features + from_state))[0]
        a = softmax(scores)
        x = (X[t] * a[:, :, None]).transpose(2, 0, 1) * (K**2 if options["rescale_glimpse"] else 1)
        for layer in range(layers):
            before_h, before_c = (h[layer], c[layer]) if carry else (0 * h[layer], 0 * c[layer])
            z = convolve_same(p[f"cells.{layer}.input.weight"], x) + p[f"cells.{layer}.input.bias"][:, None, None]
            h[layer], c[layer] = lstm_gates(z + convolve_same(p[f"cells.{layer}.recurrent.weight"], before_h), before_c)
            x = h[layer]
        flat = h[-1].transpose(1, 2, 0).reshape(-1)
        logits.append(convolutional_head(p, h[-1], a) if options["head_channels"] else linear(p, "head.classify", flat))
        maps.append(a)
    return np.array(logits), np.array(maps)


def linear_on_maps(p, name, maps):
    return np.apply_along_axis(lambda vector: linear(p, name, vector), 2, maps)


def motion_attention(p, X, M, valid, options, *, has_cells):
    """Return a function from (t, h below) to attention (K, K); X of RGB and M of flow are (T, K, K, ...) of one clip."""
    scorer = {key.removeprefix("attention."): value for key, value in p.items() if key.startswith("attention.attention.")}
    T, K = X.shape[:2]
    if options["motion"] == "map":
        XM = np.concatenate([X, M], axis=3)
        return lambda t, h: attention_of_vectors(scorer, XM[t], None, options["scorer"] or "local")
    is_magnitude = options["motion"] == "magnitude"
    inputs = np.sqrt((M**2).mean(axis=3, keepdims=True)) if is_magnitude else M
    if not has_cells:  # vectors are maps of one cell
        inputs = inputs.reshape(T, 1, 1, -1) if is_magnitude else inputs.mean(axis=(1, 2), keepdims=True)
    mean = inputs[:valid].mean(axis=0)
    hm, cm = (np.tanh(linear_on_maps(p, f"attention.initial_{state}", mean)) for state in "hc")

    def attend(t, h):
        """`h` is (rows, columns, U)."""
        nonlocal hm, cm
        hm, cm = hm.copy(), cm.copy()
        for row, column in np.ndindex(hm.shape[:2]):
            z = linear(p, "attention.cell.input", inputs[t, row, column])
            z = z + linear(p, "attention.cell.recurrent", hm[row, column]) + linear(p, "attention.cell.below", h[row, column])
            hm[row, column], cm[row, column] = lstm_gates(z, cm[row, column])
        if not has_cells:
            return attention_of_vectors(scorer, X[t], hm[0, 0], options["scorer"])
        scores = np.zeros((K, K))
        for row, column in np.ndindex(K, K):
            from_features = linear(scorer, "attention.features", X[t, row, column])
            from_state = linear(scorer, "attention.state", hm[row, column])
            scores[row, column] = linear(scorer, "attention.score", np.tanh(from_features + from_state))[0]
        return softmax(scores)

    return attend


def reference_motion_conv_alstm(p, F, valid, options):
    """One clip, F of (T, K, K, channels of RGB and of flow)."""
    T, K = F.shape[:2]
    layers, D = options["layers"], p["initial_h.0.weight"].shape[1]
    X, M = F[..., :D], F[..., D:]
    mean = X[:valid].mean(axis=0).transpose(2, 0, 1)
    h, c = (
        [
            np.tanh(convolve_same(p[f"{name}.{layer}.weight"], mean) + p[f"{name}.{layer}.bias"][:, None, None])
            for layer in range(layers)
        ]
        for name in ("initial_h", "initial_c")
    )
    attend = motion_attention(p, X, M, valid, options, has_cells=True)
    logits, maps = [], []
    for t in range(T):
        a = attend(t, h[-1].transpose(1, 2, 0))
        x = (X[t] * a[:, :, None]).transpose(2, 0, 1) * (K**2 if options["rescale_glimpse"] else 1)
        for layer in range(layers):
            z = convolve_same(p[f"cells.{layer}.input.weight"], x) + p[f"cells.{layer}.input.bias"][:, None, None]
            z = z + convolve_same(p[f"cells.{layer}.recurrent.weight"], h[layer])
            h[layer], c[layer] = lstm_gates(z, c[layer])
            x = h[layer]
        flat = h[-1].transpose(1, 2, 0).reshape(-1)
        logits.append(convolutional_head(p, h[-1], a) if options["head_channels"] else linear(p, "head.classify", flat))
        maps.append(a)
    return np.array(logits), np.array(maps)


def reference_motion_alstm(p, F, valid, options):
    """One clip, F of (T, K, K, channels of RGB and of flow)."""
    layers, D = options["layers"], p["initial_h.0.weight"].shape[1]
    X, M = F[..., :D], F[..., D:]
    mean = X[:valid].reshape(-1, D).mean(axis=0)
    h, c = ([np.tanh(linear(p, f"initial_{state}.{layer}", mean)) for layer in range(layers)] for state in "hc")
    attend = motion_attention(p, X, M, valid, options, has_cells=False)
    logits, maps = [], []
    for t in range(len(X)):
        a = attend(t, h[-1][None, None])
        x = weighted_sum(a, X[t])
        for layer in range(layers):
            z = linear(p, f"cells.{layer}.input", x) + linear(p, f"cells.{layer}.recurrent", h[layer])
            h[layer], c[layer] = lstm_gates(z, c[layer])
            x = h[layer]
        logits.append(linear(p, "head", h[-1]))
        maps.append(a)
    return np.array(logits), np.array(maps)


def uniform_over_steps(X, valid):
    return np.where(np.arange(len(X)) < valid, 1 / valid, 0.0)


def reference_temporal_attention(p, X, valid, options):
    """One clip; the last `SECOND_CHANNELS` channels are of another stream, which only `spatial` tells apart."""
    T, K, _, D = X.shape
    v, maps = np.zeros((T, D)), np.full((T, K, K), 1 / K**2)
    for t in range(T):
        v[t] = X[t].reshape(-1, D).mean(axis=0)
        if options["spatial"]:
            own = X[t, :, :, :-SECOND_CHANNELS]
            maps[t] = attention_of_vectors(p, own, None, "local")
            v[t, :-SECOND_CHANNELS] = weighted_sum(maps[t], own)
    m = v[:valid].mean(axis=0)
    h, c = np.tanh(linear(p, "initial_h", m)), np.tanh(linear(p, "initial_c", m))
    total_h, total_alpha = np.zeros_like(h), np.zeros(T)
    for _ in range(options["decoder_steps"]):
        scores = np.zeros(valid)
        for t in range(valid):
            hidden = np.tanh(linear(p, "scorer.features", v[t]) + linear(p, "scorer.state", h))
            scores[t] = linear(p, "scorer.score", hidden)[0]
        alpha = softmax(scores)
        context = sum(alpha[t] * v[t] for t in range(valid))
        h, c = lstm_gates(linear(p, "cells.0.input", context) + linear(p, "cells.0.recurrent", h), c)
        total_h += h
        total_alpha[:valid] += alpha
    logits = linear(p, "head", total_h / options["decoder_steps"])
    return np.tile(logits, (T, 1)), maps, total_alpha / options["decoder_steps"]


def window(X, t, valid, size):
    """Frames t to t + size - 1; behind the last valid one comes that one again."""
    return [X[min(t + step, valid - 1)] for step in range(size)]


def convolve_time(p, layer, frames, stride):
    """Convolution over all windows of a kernel's length in a list of maps (channels, K, K), without padding in time."""
    kernel = p[f"convolutions.{layer}.convolution.weight"]
    outputs = []
    for first in range(0, len(frames) - kernel.shape[2] + 1, stride):
        z = sum(convolve_same(kernel[:, :, step], frames[first + step]) for step in range(kernel.shape[2]))
        outputs.append(np.maximum(z + p[f"convolutions.{layer}.convolution.bias"][:, None, None], 0))
    return outputs


def fused_logits(p, X, valid, layers):
    logits = []
    for t in range(valid):
        frames = [frame.transpose(2, 0, 1) for frame in window(X, t, valid, 10)]
        for layer in range(layers):
            frames = convolve_time(p, layer, frames, stride=2)
        (map_,) = frames
        logits.append(linear(p, "head", map_.mean(axis=(1, 2))))
    return np.array(logits + logits[-1:] * (len(X) - valid))


def reference_fusion_early(p, X, valid, options):
    return fused_logits(p, X, valid, 1), np.full(X.shape[:3], 1 / X.shape[1] ** 2)


def reference_fusion_slow(p, X, valid, options):
    return fused_logits(p, X, valid, 3), np.full(X.shape[:3], 1 / X.shape[1] ** 2)


def reference_fusion_late(p, X, valid, options):
    logits = []
    for t in range(len(X)):
        pair = [X[min(step, valid - 1)].mean(axis=(0, 1)) for step in (t, t + 8)]
        logits.append(linear(p, "head", np.maximum(linear(p, "join", np.concatenate(pair)), 0)))
    return np.array(logits), np.full(X.shape[:3], 1 / X.shape[1] ** 2)


REFERENCES = {
    "alstm": reference_alstm,
    "conv_alstm": reference_conv_alstm,
    "attention_pool": reference_frame_pool,
    "lrcn": reference_alstm,
    "mean_pool": reference_frame_pool,
    "motion_conv_alstm": reference_motion_conv_alstm,
    "motion_alstm": reference_motion_alstm,
    "temporal_attention": reference_temporal_attention,
    "fusion_early": reference_fusion_early,
    "fusion_late": reference_fusion_late,
    "fusion_slow": reference_fusion_slow,
}


def make_model(variant, channels, grid, num_classes, units):
    """Build a model whose biases and statistics are not trivial, so that a forgotten one shows."""
    name, options = VARIANTS[variant]
    params = TrainParams(alstm_units=units, conv_alstm_units=units, overrides={name: options}).of(name)
    torch.manual_seed(0)
    split = (channels - SECOND_CHANNELS, SECOND_CHANNELS) if "two streams" in variant else split_channels(name, channels)
    model = build_model(params, channels=split, grid=grid, num_classes=num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        if isinstance(model, Normalised):
            model.factor.fill_(1.7)
    return model.double().eval(), params


def reference(model, params, features_TKKD, valid):
    weights = {key.removeprefix("network."): value.double().numpy() for key, value in model.state_dict().items()}
    if params.normalise:
        features_TKKD = features_TKKD * weights["factor"]
    logits, maps, *importance = REFERENCES[params.model](weights, features_TKKD, valid, params.model_dump())
    return logits, maps, *(importance or [uniform_over_steps(features_TKKD, valid)])


@pytest.mark.parametrize("size", SIZES, ids=SIZE_NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_the_equations(variant, size):
    channels, grid, num_classes, units = size
    model, params = make_model(variant, channels, grid, num_classes, units)
    features = torch.rand(3, 30, grid, grid, channels, generator=torch.Generator().manual_seed(1)).double() * 3
    valid_frames = torch.tensor([30, 17, 1])
    with torch.no_grad():
        outputs = model(features, valid_frames)
    for clip in range(3):
        wanted = reference(model, params, features[clip].numpy(), int(valid_frames[clip]))
        for ours, theirs in zip(outputs, wanted, strict=True):
            np.testing.assert_allclose(ours[clip].numpy(), theirs, rtol=0, atol=1e-10)
