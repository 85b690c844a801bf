"""Deletion and insertion (Petsiuk et al. 2018, RISE): test whether the cells that a map ranks highest drive the prediction.

Deletion masks a growing fraction of each frame's cells, highest-ranked first. The faster the true class's probability falls,
the better the map. Insertion starts with all cells masked and restores them in the same order. The whole model runs again on
the masked features and computes its attention again.

A masked cell's features are zero. After a ReLU that means that the channel's pattern is absent, and `Normalised` keeps zero,
since it scales by one factor. Features of transformers have a sign, and zero means nothing there, so a masked cell has the mean
of the training features instead. Filling with the clip's mean would reveal the clip's class, since `mean_pool` classifies
exactly that mean. Masking also lowers the activations overall, but equally for the model's order and for a control's.
"""

# N clips, B batch, T steps of a clip, K grid side, I = K * K cells, F points of a curve

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.evaluate.measures import MODEL, UNIFORM, control_maps
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.joined import JoinedReader
from pipeline_lib.training.batches import Batch, ClipLoader

STEPS = 5
"""Steps of a curve; odd, so that the complement of each count of cells is also a count (see `masked_curves`)."""

SAMPLED_CLIPS = 64
"""Training clips whose mean a masked cell has if features have a sign."""

MAX_VIDEOS = 512
"""Maximum number of videos to mask; one clip of each costs `5 * STEPS - 3` runs of the model."""


@dataclass(frozen=True)
class Curves:
    """Deletion and insertion curves: the true class's probability against the fraction of cells."""

    fraction_F: np.ndarray
    """Fraction of the cells that are masked (deletion) or restored (insertion)."""
    probability_NF: Mapping[tuple[str, str], np.ndarray]
    """The true class's mean probability over each clip's valid steps, by map and measure."""

    def areas(self) -> dict[tuple[str, str], np.ndarray]:
        """Return area_N under each clip's curves by the trapezoidal rule, by map and measure."""
        return {key: np.trapezoid(curve_NF, self.fraction_F, axis=1) for key, curve_NF in self.probability_NF.items()}


def choose_clips(test: pd.DataFrame) -> np.ndarray:
    """Return the rows of the clips to mask: the first clip of up to `MAX_VIDEOS` videos, sampled by a hash of their names."""
    first = test.sort_values("first_frame", kind="stable").drop_duplicates("video")
    drawn = sorted(first["video"], key=lambda video: (_seed(video), video))[:MAX_VIDEOS]
    row_N: np.ndarray = np.flatnonzero(test.index.isin(first.index[first["video"].isin(drawn)]))
    return row_N


def cell_counts(num_cells: int) -> np.ndarray:
    """Return the number of cells that are masked or restored at each point of a curve."""
    return np.array([round(num_cells * step / STEPS) for step in range(STEPS + 1)])


def masked_features(reader: FeatureReader | JoinedReader, clips: pd.DataFrame) -> torch.Tensor | None:
    """Return the features_D of a masked cell: the mean of some training clips, or None (zeros) if none is negative."""
    train = clips[clips["split"] == "train"]["clip"]
    sample = train.sample(min(SAMPLED_CLIPS, len(train)), random_state=0).tolist()
    if not sample:
        return None
    features_NTKKD = reader.load(sample).float()
    return features_NTKKD.mean(dim=(0, 1, 2, 3)) if (features_NTKKD < 0).any() else None


def masked_curves(
    model: nn.Module,
    loader: ClipLoader,
    clips: Sequence[str],
    attention_NTI: np.ndarray,
    batch_size: int,
    masked_D: torch.Tensor | None = None,
) -> Curves:
    """Return the deletion and insertion curves of all clips of `loader`, whose ids are `clips`; masked cells have `masked_D`.

    The uniform map ranks cells in a random order per clip, the same in all frames. The reverse order is equally random, so its
    insertion curve is its deletion curve reversed, which saves runs of the model.
    """
    model.eval()
    counts_F = cell_counts(attention_NTI.shape[2])
    blocks: list[dict[tuple[str, str], np.ndarray]] = []
    first = 0
    with torch.inference_mode():
        for batch in loader.batches(batch_size):
            rows = slice(first, first := first + len(batch.labels_B))
            ranks = _ranks(clips[rows], attention_NTI[rows])
            blocks.append(_batch_curves(_true_probability(model, batch, masked_D), ranks, counts_F))
    joined = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    return Curves(counts_F / counts_F[-1], joined)


def _batch_curves(
    probability: Callable[[np.ndarray], np.ndarray], ranks: Mapping[str, np.ndarray], counts_F: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """Return probability_BF by map and measure; `probability` takes the mask of cells to keep, (B, T, I)."""
    all_BTI = np.ones(ranks[MODEL].shape, dtype=bool)
    unmasked_B, masked_B = probability(all_BTI), probability(~all_BTI)

    def curve(first_B: np.ndarray, kept: Iterable[np.ndarray], last_B: np.ndarray) -> np.ndarray:
        return np.stack([first_B, *map(probability, kept), last_B], axis=1)

    curves = {}
    for name, rank_BTI in ranks.items():
        curves[name, "deletion"] = curve(unmasked_B, (rank_BTI >= count for count in counts_F[1:-1]), masked_B)
        if name != UNIFORM:
            curves[name, "insertion"] = curve(masked_B, (rank_BTI < count for count in counts_F[1:-1]), unmasked_B)
    return curves | {(UNIFORM, "insertion"): curves[UNIFORM, "deletion"][:, ::-1]}


def _true_probability(model: nn.Module, batch: Batch, masked_D: torch.Tensor | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from the mask of cells to keep, (B, T, I), to the true class's mean probability over valid steps."""
    features_BTKKD = batch.features_BTKKD.float()
    masked_D = None if masked_D is None else masked_D.to(features_BTKKD.device)
    valid_BT = torch.arange(features_BTKKD.shape[1], device=features_BTKKD.device) < batch.valid_steps_B[:, None]
    label_BT1 = batch.labels_B[:, None, None].expand(-1, features_BTKKD.shape[1], 1)

    def probability(kept_BTI: np.ndarray) -> np.ndarray:
        kept_BTKK1 = torch.from_numpy(kept_BTI).to(features_BTKKD.device).view(*features_BTKKD.shape[:-1], 1)
        with deterministic_inference(kept_BTKK1.device):
            kept_BTKKD = features_BTKKD * kept_BTKK1 if masked_D is None else features_BTKKD.where(kept_BTKK1, masked_D)
            logits_BTC, _, _ = model(kept_BTKKD, batch.valid_steps_B)
        true_BT = logits_BTC.double().softmax(dim=2).gather(2, label_BT1).squeeze(2)
        mean_B: np.ndarray = ((true_BT * valid_BT).sum(dim=1) / batch.valid_steps_B).cpu().numpy()
        return mean_B

    return probability


def _ranks(clips: Sequence[str], attention_BTI: np.ndarray) -> dict[str, np.ndarray]:
    """Return rank_BTI of the cells for each map, 0 for the highest; ties are ordered randomly, seeded by the clip's id."""
    num_cells = attention_BTI.shape[2]
    random_BI = np.stack([np.random.default_rng(_seed(clip)).permutation(num_cells) for clip in clips])
    controls = {name: map_KK.reshape(1, 1, -1) for name, map_KK in control_maps(round(num_cells**0.5)).items()}
    maps = {MODEL: attention_BTI} | controls
    return {name: _rank(np.broadcast_to(map_BTI, attention_BTI.shape), random_BI) for name, map_BTI in maps.items()}


def _rank(score_BTI: np.ndarray, random_BI: np.ndarray) -> np.ndarray:
    random_BTI = np.broadcast_to(random_BI[:, None, :], score_BTI.shape)
    descending_BTI = np.argsort(-np.take_along_axis(score_BTI, random_BTI, axis=2), axis=2, kind="stable")
    rank_BTI: np.ndarray = np.argsort(np.take_along_axis(random_BTI, descending_BTI, axis=2), axis=2)
    return rank_BTI


def _seed(name: str) -> int:
    """Return a seed that depends on the name alone, not on the order or batching of clips."""
    return zlib.crc32(name.encode())
