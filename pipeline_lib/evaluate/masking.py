"""Deletion and insertion (Petsiuk et al. 2018, RISE): does what the map ranks highest decide what the model says?

Deletion masks a growing share of each frame's cells, those first that a map ranks highest, and watches the probability of the
true class: the sooner it falls, the better the map. Insertion begins with everything masked and gives the cells back in the
same order. The whole model runs again on what is left, its attention included.

A masked cell's features are zero. After a ReLU that is what a channel says where its pattern is not; it stays zero under the
one factor of `Normalised`; and it tells nothing of the clip, which a mean over its cells would: `mean_pool` decides by just
that. It makes frames fainter too, but as much for a control's order as for the model's.
"""

# N clips, B batch, T frames of a clip, K grid side, I = K * K cells, F points of a curve

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline_lib.compute.gpu import deterministic_inference
from pipeline_lib.evaluate.measures import MODEL, UNIFORM, control_maps
from pipeline_lib.training.batches import Batch, ClipLoader

STEPS = 5
"""Steps of a curve. An odd number, so that every count of cells has its complement among the counts."""

MOST_VIDEOS = 512
"""Videos that are masked at most: a clip of each costs `5 * STEPS - 3` runs of the model."""


@dataclass(frozen=True)
class Curves:
    """What is left of the true class's probability behind growing masks."""

    fraction_F: np.ndarray
    """Share of the cells that is masked, or given back."""
    probability_NF: Mapping[tuple[str, str], np.ndarray]
    """By map and measure, for each clip the mean over its valid frames."""

    def areas(self) -> dict[tuple[str, str], np.ndarray]:
        """Return the area_N under each clip's curves, by the trapezoid rule."""
        return {key: np.trapezoid(curve_NF, self.fraction_F, axis=1) for key, curve_NF in self.probability_NF.items()}


def choose_clips(test: pd.DataFrame) -> np.ndarray:
    """Return the rows of the clips to mask: each video's first, of at most `MOST_VIDEOS` videos drawn by their names."""
    first = test.sort_values("first_frame", kind="stable").drop_duplicates("video")
    drawn = sorted(first["video"], key=lambda video: (_seed(video), video))[:MOST_VIDEOS]
    row_N: np.ndarray = np.flatnonzero(test.index.isin(first.index[first["video"].isin(drawn)]))
    return row_N


def cell_counts(num_cells: int) -> np.ndarray:
    """Return how many cells are masked, or given back, at each point of a curve."""
    return np.array([round(num_cells * step / STEPS) for step in range(STEPS + 1)])


def masked_curves(
    model: nn.Module, source: ClipLoader, clips: Sequence[str], attention_NTI: np.ndarray, batch_size: int
) -> Curves:
    """Run the model on the clips of `source` (named `clips`, with the model's attention) behind growing masks.

    The uniform map ranks cells in an order drawn for each clip, the same in all its frames, as the centre's is. That order
    backwards is as good a draw, so that its insertion is its deletion read backwards, and runs are saved.
    """
    model.eval()
    counts_F = cell_counts(attention_NTI.shape[2])
    blocks: list[dict[tuple[str, str], np.ndarray]] = []
    first = 0
    with torch.inference_mode():
        for batch in source.batches(batch_size):
            rows = slice(first, first := first + len(batch.labels_B))
            ranks = _ranks(clips[rows], attention_NTI[rows])
            blocks.append(_batch_curves(_true_probability(model, batch), ranks, counts_F))
    joined = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    return Curves(counts_F / counts_F[-1], joined)


def _batch_curves(
    probability: Callable[[np.ndarray], np.ndarray], ranks: Mapping[str, np.ndarray], counts_F: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """Return probability_BF by map and measure; `probability` takes the cells that are kept, (B, T, I)."""
    everything_BTI = np.ones(ranks[MODEL].shape, dtype=bool)
    whole_B, nothing_B = probability(everything_BTI), probability(~everything_BTI)

    def curve(first_B: np.ndarray, kept: Iterable[np.ndarray], last_B: np.ndarray) -> np.ndarray:
        return np.stack([first_B, *map(probability, kept), last_B], axis=1)

    curves = {}
    for name, rank_BTI in ranks.items():
        curves[name, "deletion"] = curve(whole_B, (rank_BTI >= count for count in counts_F[1:-1]), nothing_B)
        if name != UNIFORM:
            curves[name, "insertion"] = curve(nothing_B, (rank_BTI < count for count in counts_F[1:-1]), whole_B)
    return curves | {(UNIFORM, "insertion"): curves[UNIFORM, "deletion"][:, ::-1]}


def _true_probability(model: nn.Module, batch: Batch) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from the cells that are kept, (B, T, I), to the true class's mean probability over valid frames."""
    features_BTKKD = batch.features_BTKKD.float()
    valid_BT = torch.arange(features_BTKKD.shape[1], device=features_BTKKD.device) < batch.valid_frames_B[:, None]
    label_BT1 = batch.labels_B[:, None, None].expand(-1, features_BTKKD.shape[1], 1)

    def probability(kept_BTI: np.ndarray) -> np.ndarray:
        kept_BTKK1 = torch.from_numpy(kept_BTI).to(features_BTKKD.device).view(*features_BTKKD.shape[:-1], 1)
        with deterministic_inference(kept_BTKK1.device):
            logits_BTC, _ = model(features_BTKKD * kept_BTKK1, batch.valid_frames_B)
        true_BT = logits_BTC.double().softmax(dim=2).gather(2, label_BT1).squeeze(2)
        mean_B: np.ndarray = ((true_BT * valid_BT).sum(dim=1) / batch.valid_frames_B).cpu().numpy()
        return mean_B

    return probability


def _ranks(clips: Sequence[str], attention_BTI: np.ndarray) -> dict[str, np.ndarray]:
    """Return each map's rank_BTI of the cells, 0 the highest; equal ones are in an order drawn for the clip."""
    num_cells = attention_BTI.shape[2]
    drawn_BI = np.stack([np.random.default_rng(_seed(clip)).permutation(num_cells) for clip in clips])
    controls = {name: map_KK.reshape(1, 1, -1) for name, map_KK in control_maps(round(num_cells**0.5)).items()}
    maps = {MODEL: attention_BTI} | controls
    return {name: _rank(np.broadcast_to(map_BTI, attention_BTI.shape), drawn_BI) for name, map_BTI in maps.items()}


def _rank(score_BTI: np.ndarray, drawn_BI: np.ndarray) -> np.ndarray:
    drawn_BTI = np.broadcast_to(drawn_BI[:, None, :], score_BTI.shape)
    falling_BTI = np.argsort(-np.take_along_axis(score_BTI, drawn_BTI, axis=2), axis=2, kind="stable")
    rank_BTI: np.ndarray = np.argsort(np.take_along_axis(drawn_BTI, falling_BTI, axis=2), axis=2)
    return rank_BTI


def _seed(name: str) -> int:
    """Return a number that depends on the name alone: neither order nor batches of clips play a part."""
    return zlib.crc32(name.encode())
