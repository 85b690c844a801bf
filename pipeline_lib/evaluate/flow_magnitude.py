"""The magnitude of optical flow as a map: what motion alone says about where the actor is.

Flow is computed from the videos, with the default method of a flow stream (DIS at 56 x 56, in pixels of 224 x 224). The
frame's mean flow, the camera's motion, is subtracted. Cached streams of flow hold a network's features, from which
magnitudes cannot be told. Magnitudes above `bound` pixels count as `bound`.
"""

# N clips, T frames of a clip, F frames of a video, S samples per side, K grid side, I = K * K cells

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.params import StreamParams
from pipeline_lib.streams.encoding import decoded_side
from pipeline_lib.streams.flow.encoder import flow_images
from pipeline_lib.streams.flow.encoding import CENTRE
from pipeline_lib.streams.flow.opening import flow_spec
from pipeline_lib.video.decoders import Derived
from pipeline_lib.video.decoding import process_ahead

FLOW = StreamParams(input="flow")

SAMPLES = 56
"""Samples per side of the magnitudes that are kept; a multiple of the usual grids."""

_lock = threading.Lock()
"""Models of a fold that are evaluated at the same time need the same videos: the first one computes them."""


def flow_maps(test: pd.DataFrame, num_frames: int, grid: int, clip_N: np.ndarray, path_of: Callable[[str], Path]) -> np.ndarray:
    """Return map_NTI of all clips of the videos that some clips are from, uniform for other videos; sums to 1.

    Args:
        test: all clips, with `video`, `first_frame` and `valid_frames`.
        num_frames: frames of a clip.
        grid: cells per side.
        clip_N: rows of the clips whose videos are wanted.
        path_of: returns the path of a subsampled video by its id.

    Raises:
        UserError: a video cannot be decoded, or OpenCV is missing.
    """
    videos = sorted(set(test["video"].iloc[clip_N]))
    with _lock:
        magnitudes = _magnitudes(tuple((video, path_of(video)) for video in videos))
    map_NTI = np.full((len(test), num_frames, grid * grid), 1 / grid**2)
    rows = zip(test["video"], test["first_frame"], test["valid_frames"], strict=True)
    for map_TI, (video, first, valid) in zip(map_NTI, rows, strict=True):
        if video in magnitudes:
            map_TI[:valid] = _to_cells(magnitudes[video][first : first + valid], grid)
    return map_NTI


@lru_cache(maxsize=3)
def _magnitudes(paths: tuple[tuple[str, Path], ...]) -> dict[str, np.ndarray]:
    """Return the magnitude_FSS (uint8, proportional to pixels a frame) of each video."""
    wanted = Derived(flow_images, astuple(flow_spec(FLOW, max_side=SAMPLES)))
    decoded = process_ahead(
        paths,
        lambda _, images: (image_NSSC[..., 2] - np.uint8(CENTRE) for _, image_NSSC in images),
        wanted=[wanted],
        workers=num_cores(),
        max_side=decoded_side(FLOW.image_size),
    )
    return {video: np.concatenate(list(arrays)) for video, arrays in decoded}


def _to_cells(magnitude_FSS: np.ndarray, grid: int) -> np.ndarray:
    """Return each cell's share of a frame's motion, (F, I); uniform if nothing moves."""
    edge = np.arange(grid + 1) / grid
    start_S = np.arange(SAMPLES) / SAMPLES
    overlap_KS = np.minimum(edge[1:, None], start_S + 1 / SAMPLES) - np.maximum(edge[:-1, None], start_S)
    weight_KS = np.maximum(overlap_KS, 0) * SAMPLES
    cells_FI = (weight_KS @ magnitude_FSS.astype(np.float64) @ weight_KS.T).reshape(len(magnitude_FSS), -1)
    total_F1 = cells_FI.sum(axis=1, keepdims=True)
    shares_FI: np.ndarray = np.where(total_F1 > 0, cells_FI / np.where(total_F1 > 0, total_F1, 1), 1 / grid**2)
    return shares_FI
