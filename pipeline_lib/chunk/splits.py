"""Assign videos to the splits train, val, test and unused, and check for leaks between them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from pipeline_lib.errors import UserError
from pipeline_lib.params import ChunkParams

SPLITS = ("train", "val", "test", "unused")

TUTORIAL_TEST, TUTORIAL_HELD_OUT = 400, 1530
"""Of HMDB-51's 1530 videos with label 2, the tutorial uses 400 for testing and 1130 for validation."""


def official_splits(videos: pd.DataFrame, params: ChunkParams) -> pd.Series:
    """Return splits from labels, with whole groups of each class's training videos held out for validation.

    Args:
        videos: columns `video`, `class_name`, `group` and `label`.
        params: `val_fraction` and `seed`.
    """
    splits = videos["label"].copy()
    val_groups = choose_groups(videos[splits == "train"], params.val_fraction, f"val {params.seed}")
    return splits.mask((splits == "train") & videos["group"].isin(val_groups), "val")


def tutorial_splits(videos: pd.DataFrame, params: ChunkParams) -> pd.Series:
    """Return splits from labels, with the test videos randomly divided into val and test in the ratio 1130 to 400.

    With `tutorial_code`, unused videos are in the train split, as in the tutorial's code, although they share groups with test
    videos (see `count_leaks`).
    """
    splits = videos["label"].replace("unused", "train") if params.protocol == "tutorial_code" else videos["label"].copy()
    held_out = videos[splits == "test"]
    ranked = held_out.loc[held_out["video"].map(lambda video: _rank(f"tutorial {params.seed}", video)).sort_values().index]
    num_test = round(len(ranked) * TUTORIAL_TEST / TUTORIAL_HELD_OUT)
    splits[ranked.index[num_test:]] = "val"
    return splits


def grouped_random_splits(videos: pd.DataFrame, params: ChunkParams) -> pd.Series:
    """Return random splits by group and class, for a collection without split files; folds are drawn independently."""
    draw = f"{params.seed}" if params.fold == 1 else f"{params.seed} split {params.fold}"
    test_groups = choose_groups(videos, params.test_fraction, f"test {draw}")
    is_test = videos["group"].isin(test_groups)
    val_groups = choose_groups(videos[~is_test], params.val_fraction, f"val {draw}")
    splits = pd.Series("train", index=videos.index, dtype="str")
    return splits.mask(videos["group"].isin(val_groups), "val").mask(is_test, "test")


def choose_groups(videos: pd.DataFrame, fraction: float, seed: str) -> set[str]:
    """Choose groups that hold about `fraction` of each class's videos.

    From a class with several groups, at least one is chosen and one is not. The choice depends on the groups' names and the
    seed, not on their order.
    """
    chosen: set[str] = set()
    for _, groups in videos.groupby("class_name")["group"]:
        chosen |= _choose_class_groups(Counter(groups), fraction, seed)
    return chosen


def _choose_class_groups(sizes: dict[str, int], fraction: float, seed: str) -> set[str]:
    target = fraction * sum(sizes.values())
    chosen: set[str] = set()
    num_chosen = 0
    for group in sorted(sizes, key=lambda group: _rank(seed, group)):
        is_nearer = abs(num_chosen + sizes[group] - target) < abs(num_chosen - target)
        if is_nearer and len(chosen) + 1 < len(sizes):
            chosen.add(group)
            num_chosen += sizes[group]
    if not chosen and len(sizes) > 1:
        chosen.add(min(sizes, key=lambda group: (sizes[group], _rank(seed, group))))
    return chosen


def _rank(seed: str, name: str) -> str:
    """Return a pseudo-random sort key that is the same on every machine and Python version."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def check_no_leaks(videos: pd.DataFrame, protocol: str) -> None:
    """Check that no video and no group is in two splits.

    With `tutorial`, val and test may share groups, because the tutorial divides its held-out videos individually. With
    `tutorial_code` groups are not checked, because the tutorial's code trains on groups of the test split (see `count_leaks`).

    Raises:
        UserError: a video is listed twice, or a group crosses splits; names two of its videos.
    """
    repeated = videos[videos["video"].duplicated()]
    if len(repeated):
        raise UserError(f"{repeated['video'].iloc[0]} is in the collection twice; remove one")
    if protocol == "tutorial_code":
        return
    used = videos[videos["split"] != "unused"]
    if protocol == "tutorial":
        used = used.assign(split=used["split"].replace("val", "test"))
    one_per_split = used.drop_duplicates(["group", "split"]).sort_values(["group", "split"])
    leaks = one_per_split[one_per_split["group"].duplicated(keep=False)]
    if len(leaks):
        first, second = leaks.iloc[0], leaks.iloc[1]
        raise UserError(
            f"group {first['group']} crosses splits: {first['video']} is in {first['split']}, {second['video']} in "
            f"{second['split']} ({leaks['group'].nunique()} such groups); correct the split files or the table of groups"
        )


def count_leaks(videos: pd.DataFrame) -> int:
    """Return the number of test videos that share their group with a training video; nonzero only for `tutorial_code`."""
    trained = set(videos.loc[videos["split"] == "train", "group"])
    return int((videos.loc[videos["split"] == "test", "group"].isin(trained)).sum())


def check_trainable(clips: pd.DataFrame, splits: Sequence[str] = ("val", "test")) -> None:
    """Check that every class has training clips and each of `splits` has clips.

    Raises:
        UserError: a class without training clips, or a split without clips.
    """
    trained = clips.loc[clips["split"] == "train", "class_name"]
    lacking = sorted(set(clips["class_name"].unique()) - set(trained.unique()))
    if lacking:
        raise UserError(
            f"no training video in {len(lacking)} of {clips['class_name'].nunique()} classes ({', '.join(lacking[:5])}); "
            "add videos, another chunk.fold, or chunk.short: pad"
        )
    for split in splits:
        if not (clips["split"] == split).any():
            raise UserError(f"the {split} split has no clips; add videos of other groups")
