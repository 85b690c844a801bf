"""Triton kernels for what lies between the matrix products of ALSTM's loop; imported only where Triton is.

Every tensor is contiguous but `cells`, whose frames lie `clip_stride` apart. One row of a grid is one clip.
"""

# Triton reads the kernels' source, which is not Python to type checkers.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202

# B batch, I cells, D channels, U units, V width of the scorer, S = D + U

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def score_frame(
    ahead_BV, product_BV, factors_BV, weights_IV, bias_I, scores_BI, num_cells, width,
    block_I: tl.constexpr, block_V: tl.constexpr,
):  # fmt: skip
    """Compute scores = sum_V tanh(ahead + product) * factors * weights + bias: a score a cell from the whole frame."""
    clip = tl.program_id(0)
    cell = tl.program_id(1) * block_I + tl.arange(0, block_I)
    inside_I = cell < num_cells
    scores = tl.load(bias_I + cell, mask=inside_I, other=0)
    for first in range(0, width, block_V):
        v = first + tl.arange(0, block_V)
        inside_V = v < width
        place = clip * width + v
        hidden = _tanh(tl.load(ahead_BV + place, mask=inside_V, other=0) + tl.load(product_BV + place, mask=inside_V, other=0))
        kept = hidden * tl.load(factors_BV + place, mask=inside_V, other=0)
        inside = inside_I[:, None] & inside_V[None, :]
        weights = tl.load(weights_IV + cell[:, None] * width + v[None, :], mask=inside, other=0)
        scores += tl.sum(weights * kept[None, :], axis=1)
    tl.store(scores_BI + clip * num_cells + cell, scores, mask=inside_I)


@triton.jit
def score_frame_back(
    dscores_BI, ahead_BV, product_BV, factors_BV, weights_IV, dahead_BV, num_cells, width,
    block_I: tl.constexpr, block_V: tl.constexpr,
):  # fmt: skip
    """Gradient of what `score_frame` takes the tanh of."""
    clip = tl.program_id(0)
    v = tl.program_id(1) * block_V + tl.arange(0, block_V)
    cell = tl.arange(0, block_I)
    inside_I, inside_V = cell < num_cells, v < width
    place = clip * width + v
    dscores = tl.load(dscores_BI + clip * num_cells + cell, mask=inside_I, other=0)
    inside = inside_I[:, None] & inside_V[None, :]
    weights = tl.load(weights_IV + cell[:, None] * width + v[None, :], mask=inside, other=0)
    hidden = _tanh(tl.load(ahead_BV + place, mask=inside_V) + tl.load(product_BV + place, mask=inside_V))
    dhidden = tl.sum(weights * dscores[:, None], axis=0) * tl.load(factors_BV + place, mask=inside_V)
    tl.store(dahead_BV + place, dhidden * (1 - hidden * hidden), mask=inside_V)


@triton.jit
def score_cells(
    ahead_BIV, product_BV, weights_BV, bias_1, scores_BI, num_cells, width, block_I: tl.constexpr, block_V: tl.constexpr
):
    """Compute scores = sum_V tanh(ahead + product) * weights + bias: each cell from its own features."""
    clip = tl.program_id(0)
    cell = tl.program_id(1) * block_I + tl.arange(0, block_I)
    scores = tl.zeros((block_I,), tl.float32)
    for first in range(0, width, block_V):
        v = first + tl.arange(0, block_V)
        inside_V = v < width
        inside = (cell < num_cells)[:, None] & inside_V[None, :]
        ahead = tl.load(ahead_BIV + (clip * num_cells + cell[:, None]) * width + v[None, :], mask=inside, other=0)
        product = tl.load(product_BV + clip * width + v, mask=inside_V, other=0)
        weights = tl.load(weights_BV + clip * width + v, mask=inside_V, other=0)
        scores += tl.sum(_tanh(ahead + product[None, :]) * weights[None, :], axis=1)
    tl.store(scores_BI + clip * num_cells + cell, scores + tl.load(bias_1), mask=cell < num_cells)


@triton.jit
def score_cells_back(
    dscores_BI, ahead_BIV, product_BV, weights_BV, dahead_BIV, dproduct_BV, dweights_BV,
    num_cells, width, block_I: tl.constexpr, block_V: tl.constexpr,
):  # fmt: skip
    """Gradients of `score_cells`."""
    clip = tl.program_id(0)
    v = tl.program_id(1) * block_V + tl.arange(0, block_V)
    cell = tl.arange(0, block_I)
    inside_I, inside_V = cell < num_cells, v < width
    inside = inside_I[:, None] & inside_V[None, :]
    place = (clip * num_cells + cell[:, None]) * width + v[None, :]
    dscores = tl.load(dscores_BI + clip * num_cells + cell, mask=inside_I, other=0)[:, None]
    product = tl.load(product_BV + clip * width + v, mask=inside_V, other=0)
    weights = tl.load(weights_BV + clip * width + v, mask=inside_V, other=0)
    hidden = _tanh(tl.load(ahead_BIV + place, mask=inside, other=0) + product[None, :])
    dahead = dscores * weights[None, :] * (1 - hidden * hidden)
    tl.store(dahead_BIV + place, dahead, mask=inside)
    tl.store(dproduct_BV + clip * width + v, tl.sum(dahead, axis=0), mask=inside_V)
    tl.store(dweights_BV + clip * width + v, tl.sum(dscores * hidden, axis=0), mask=inside_V)


@triton.jit
def look(
    scores_BI, cells_BID, attention_BI, stacked_BS, clip_stride, num_cells, channels, stacked_stride,
    block_I: tl.constexpr, block_D: tl.constexpr,
):  # fmt: skip
    """Compute attention = softmax(scores); the first D of stacked = sum_I attention * cells."""
    clip = tl.program_id(0)
    cell = tl.arange(0, block_I)
    d = tl.program_id(1) * block_D + tl.arange(0, block_D)
    scores = tl.load(scores_BI + clip * num_cells + cell, mask=cell < num_cells, other=float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    attention = weights / tl.sum(weights, axis=0)
    if tl.program_id(1) == 0:
        tl.store(attention_BI + clip * num_cells + cell, attention, mask=cell < num_cells)
    inside = (cell < num_cells)[:, None] & (d < channels)[None, :]
    cells = tl.load(cells_BID + clip * clip_stride + cell[:, None] * channels + d[None, :], mask=inside, other=0)
    tl.store(stacked_BS + clip * stacked_stride + d, tl.sum(attention[:, None] * cells, axis=0), mask=d < channels)


@triton.jit
def look_back(
    dstacked_BS, dattention_BI, attention_BI, cells_BID, dscores_BI, clip_stride, num_cells, channels, stacked_stride,
    block_I: tl.constexpr, block_D: tl.constexpr,
):  # fmt: skip
    """Gradient of `look`'s scores; the cells have none."""
    clip = tl.program_id(0)
    cell = tl.arange(0, block_I)
    inside_I = cell < num_cells
    attention = tl.load(attention_BI + clip * num_cells + cell, mask=inside_I, other=0)
    dattention = tl.load(dattention_BI + clip * num_cells + cell, mask=inside_I, other=0)
    for first in range(0, channels, block_D):
        d = first + tl.arange(0, block_D)
        inside = inside_I[:, None] & (d < channels)[None, :]
        cells = tl.load(cells_BID + clip * clip_stride + cell[:, None] * channels + d[None, :], mask=inside, other=0)
        dglimpse = tl.load(dstacked_BS + clip * stacked_stride + d, mask=d < channels, other=0)
        dattention += tl.sum(cells * dglimpse[None, :], axis=1)
    dscores = attention * (dattention - tl.sum(attention * dattention, axis=0))
    tl.store(dscores_BI + clip * num_cells + cell, dscores, mask=inside_I)


@triton.jit
def remember(
    gates_B4U, bias_4U, c_BU, factors_BU, activations_B4U, next_c_BU, h_BU, stacked_h_BS, kept_BU,
    units, stacked_stride, block: tl.constexpr,
):  # fmt: skip
    """The LSTM's next state; h also goes where the next step takes it from, and with `factors` into kept."""
    clip = tl.program_id(0)
    u = tl.program_id(1) * block + tl.arange(0, block)
    inside = u < units
    gates, state = gates_B4U + clip * 4 * units + u, clip * units + u
    i = tl.sigmoid(tl.load(gates, mask=inside) + tl.load(bias_4U + u, mask=inside))
    f = tl.sigmoid(tl.load(gates + units, mask=inside) + tl.load(bias_4U + units + u, mask=inside))
    g = _tanh(tl.load(gates + 2 * units, mask=inside) + tl.load(bias_4U + 2 * units + u, mask=inside))
    o = tl.sigmoid(tl.load(gates + 3 * units, mask=inside) + tl.load(bias_4U + 3 * units + u, mask=inside))
    activations = activations_B4U + clip * 4 * units + u
    tl.store(activations, i, mask=inside)
    tl.store(activations + units, f, mask=inside)
    tl.store(activations + 2 * units, g, mask=inside)
    tl.store(activations + 3 * units, o, mask=inside)
    c = f * tl.load(c_BU + state, mask=inside) + i * g
    h = o * _tanh(c)
    tl.store(next_c_BU + state, c, mask=inside)
    tl.store(h_BU + state, h, mask=inside)
    tl.store(stacked_h_BS + clip * stacked_stride + u, h, mask=inside)
    tl.store(kept_BU + state, h * tl.load(factors_BU + state, mask=inside), mask=inside)


@triton.jit
def remember_back(
    dh_BU, dstacked_h_BS, dkept_BU, factors_BU, dc_BU, activations_B4U, c_BU, next_c_BU, dgates_B4U,
    units, stacked_stride, block: tl.constexpr,
):  # fmt: skip
    """Gradient of `remember`'s gates, and that of c in place."""
    clip = tl.program_id(0)
    u = tl.program_id(1) * block + tl.arange(0, block)
    inside = u < units
    state = clip * units + u
    dh = tl.load(dh_BU + state, mask=inside) + tl.load(dstacked_h_BS + clip * stacked_stride + u, mask=inside)
    dh += tl.load(dkept_BU + state, mask=inside) * tl.load(factors_BU + state, mask=inside)
    activations = activations_B4U + clip * 4 * units + u
    i, f = tl.load(activations, mask=inside), tl.load(activations + units, mask=inside)
    g, o = tl.load(activations + 2 * units, mask=inside), tl.load(activations + 3 * units, mask=inside)
    tanh_c = _tanh(tl.load(next_c_BU + state, mask=inside))
    dc = tl.load(dc_BU + state, mask=inside) + dh * o * (1 - tanh_c * tanh_c)
    dgates = dgates_B4U + clip * 4 * units + u
    tl.store(dgates, dc * g * i * (1 - i), mask=inside)
    tl.store(dgates + units, dc * tl.load(c_BU + state, mask=inside) * f * (1 - f), mask=inside)
    tl.store(dgates + 2 * units, dc * i * (1 - g * g), mask=inside)
    tl.store(dgates + 3 * units, dh * tanh_c * o * (1 - o), mask=inside)
    tl.store(dc_BU + state, dc * f, mask=inside)
