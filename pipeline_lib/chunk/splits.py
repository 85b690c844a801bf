"""Assigns videos to the splits train, val, test and unused, and guards against leaks between them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from pipeline_lib.errors import UserError
from pipeline_lib.params import ChunkParams

SPLITS = ("train", "val", "test", "unused")

TUTORIAL_TEST, TUTORIAL_HELD_OUT = 400, 1530
"""The tutorial tests 400 of HMDB-51's 1530 videos of label 2, and validates on the other 1130."""


def official_splits(videos: pd.DataFrame, params: ChunkParams) -> pd.Series:
    """Return splits from labels, validation cut from the training videos by group, class by class.

    Args:
        videos: columns `video`, `class_name`, `group` and `label`.
        params: `val_fraction` and `seed`.
    """
    splits = videos["label"].copy()
    val_groups = choose_groups(videos[splits == "train"], params.val_fraction, f"val {params.seed}")
    return splits.mask((splits == "train") & videos["group"].isin(val_groups), "val")


def tutorial_splits(videos: pd.DataFrame, params: ChunkParams) -> pd.Series:
    """Return splits from labels, the test videos dealt one by one to val and test as 1130 to 400.

    Under `tutorial_code` the unused videos train too, as they did in the tutorial's code, though they share groups with the
    test videos (see `count_leaks`).
    """
    splits = videos["label"].replace("unused", "train") if params.protocol == "tutorial_code" else videos["label"].copy()
    held_out = videos[splits == "test"]
    ranked = held_out.loc[held_out["video"].map(lambda video: _rank(f"tutorial {params.seed}", video)).sort_values().index]
    num_test = round(len(ranked) * TUTORIAL_TEST / TUTORIAL_HELD_OUT)
    splits[ranked.index[num_test:]] = "val"
    return splits


def grouped_random_splits(videos: pd.DataFrame, params: ChunkParams) -> pd.Series:
    """Return splits drawn by group, class by class, for a collection without split files; each fold draws anew."""
    draw = f"{params.seed}" if params.fold == 1 else f"{params.seed} split {params.fold}"
    test_groups = choose_groups(videos, params.test_fraction, f"test {draw}")
    is_test = videos["group"].isin(test_groups)
    val_groups = choose_groups(videos[~is_test], params.val_fraction, f"val {draw}")
    splits = pd.Series("train", index=videos.index, dtype="str")
    return splits.mask(videos["group"].isin(val_groups), "val").mask(is_test, "test")


def choose_groups(videos: pd.DataFrame, fraction: float, seed: str) -> set[str]:
    """Choose groups that hold about `fraction` of each class's videos.

    A class of two groups or more gives at least one and keeps at least one. Which ones depends on the groups' names and the
    seed: not on their order, and little on which other groups there are.
    """
    chosen: set[str] = set()
    for _, groups in videos.groupby("class_name")["group"]:
        chosen |= _choose_groups_of_class(Counter(groups), fraction, seed)
    return chosen


def _choose_groups_of_class(sizes: dict[str, int], fraction: float, seed: str) -> set[str]:
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
    """Return a pseudo-random sort key that is the same on every machine and in every version of Python."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def check_no_leaks(videos: pd.DataFrame, protocol: str) -> None:
    """Fail if a video, or a group, is in two splits.

    The tutorial deals its held-out videos to val and test one by one, so there, and only there, the two may share a group.
    Its code trains on groups of the test split besides: `tutorial_code` does so to be compared with it, and says how often.

    Raises:
        UserError: names the group and two of its videos.
    """
    repeated = videos[videos["video"].duplicated()]
    if len(repeated):
        raise UserError(f"{repeated['video'].iloc[0]} is in the collection twice; remove one")
    if protocol == "tutorial_code":
        return
    used = videos[videos["split"] != "unused"]
    if protocol == "tutorial":
        used = used.assign(split=used["split"].replace("val", "test"))
    one_a_split = used.drop_duplicates(["group", "split"]).sort_values(["group", "split"])
    leaks = one_a_split[one_a_split["group"].duplicated(keep=False)]
    if len(leaks):
        first, second = leaks.iloc[0], leaks.iloc[1]
        raise UserError(
            f"group {first['group']} crosses splits: {first['video']} is in {first['split']}, {second['video']} in "
            f"{second['split']} ({leaks['group'].nunique()} such groups); correct the split files or the table of groups"
        )


def count_leaks(videos: pd.DataFrame) -> int:
    """Return how many test videos share their group with a training video; only `tutorial_code` has any."""
    trained = set(videos.loc[videos["split"] == "train", "group"])
    return int((videos.loc[videos["split"] == "test", "group"].isin(trained)).sum())


def check_trainable(clips: pd.DataFrame, splits: Sequence[str] = ("val", "test")) -> None:
    """Fail if a model cannot be trained on these clips, and judged on those of `splits`.

    Raises:
        UserError: a class without training clips, or no clip at all in one of the splits.
    """
    lacking = sorted(set(clips["class_name"]) - set(clips.loc[clips["split"] == "train", "class_name"]))
    if lacking:
        raise UserError(
            f"no training video in {len(lacking)} of {clips['class_name'].nunique()} classes ({', '.join(lacking[:5])}); "
            "add videos, another chunk.fold, or chunk.short: pad"
        )
    for split in splits:
        if not (clips["split"] == split).any():
            raise UserError(f"no clip is in the {split} split; add videos of other groups")
