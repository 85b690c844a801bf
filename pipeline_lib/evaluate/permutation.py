"""Permute labels among videos of the same footage, so that only properties of the footage can be learned."""

# V videos, S videos of one group

from __future__ import annotations

import numpy as np
import pandas as pd


def video_footage(videos: pd.DataFrame) -> pd.Series:
    """Return the footage that each video was cut from: its `group`, `<footage>_<class>`, without the class.

    Intervals and paired tests group videos by footage, because videos of different classes from one film are also correlated.
    """
    rows = zip(videos["group"], videos["class_name"], strict=True)
    return pd.Series([group.removesuffix(f"_{class_name}") for group, class_name in rows], index=videos.index, dtype="str")


def mixed_and_single(footage_V: pd.Series, label_V: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the rows of each footage with several labels, and the rows of each footage with a single label."""
    mixed: list[np.ndarray] = []
    single: list[np.ndarray] = []
    for footage in footage_V.unique():
        row_S = np.flatnonzero(footage_V == footage)
        (mixed if (label_V[row_S] != label_V[row_S[0]]).any() else single).append(row_S)
    return mixed, single


def permute_labels(
    label_V: np.ndarray, mixed: list[np.ndarray], single: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Return labels permuted within mixed footage and swapped as a whole among single-label footage."""
    permuted_V = label_V.copy()
    for row_S in mixed:
        permuted_V[row_S] = rng.permutation(label_V[row_S])
    swapped = rng.permutation([label_V[row_S[0]] for row_S in single])
    for row_S, label in zip(single, swapped, strict=True):
        permuted_V[row_S] = label
    return permuted_V
