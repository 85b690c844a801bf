"""Labels permuted among videos of the same footage: what the footage gives away is then all that is left to learn."""

# V videos, S videos of one piece of footage

from __future__ import annotations

import numpy as np
import pandas as pd


def video_footage(videos: pd.DataFrame) -> pd.Series:
    """Return the footage that each video was cut from: its `group`, `<footage>_<class>`, without the class.

    Videos of two classes from one film are alike as well, so intervals and paired tests are over these groups.
    """
    rows = zip(videos["group"], videos["class_name"], strict=True)
    return pd.Series([group.removesuffix(f"_{class_name}") for group, class_name in rows], index=videos.index, dtype="str")


def mixed_and_single(footage_V: pd.Series, label_V: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the rows of each footage whose videos have several labels, and of each whose videos all have the same."""
    rows = [np.flatnonzero(footage_V == footage) for footage in footage_V.unique()]
    is_mixed = [bool((label_V[row_S] != label_V[row_S[0]]).any()) for row_S in rows]
    mixed = [row_S for row_S, mixes in zip(rows, is_mixed, strict=True) if mixes]
    single = [row_S for row_S, mixes in zip(rows, is_mixed, strict=True) if not mixes]
    return mixed, single


def permute_labels(
    label_V: np.ndarray, mixed: list[np.ndarray], single: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Return labels permuted within each mixed footage; single-label footage exchanges its labels as a whole."""
    permuted_V = label_V.copy()
    for row_S in mixed:
        permuted_V[row_S] = rng.permutation(label_V[row_S])
    given = rng.permutation([label_V[row_S[0]] for row_S in single])
    for row_S, label in zip(single, given, strict=True):
        permuted_V[row_S] = label
    return permuted_V
