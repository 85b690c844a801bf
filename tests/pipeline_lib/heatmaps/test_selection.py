"""Which clips are chosen, and that nothing but the rule decides it."""

from __future__ import annotations

import pandas as pd

from pipeline_lib.heatmaps.selection import RULES, select_clips
from pipeline_lib.params import HeatmapsParams


def predictions(*rows: tuple[str, str, float, bool]) -> pd.DataFrame:
    """Rows of (clip, class, confidence, correct)."""
    table = pd.DataFrame(rows, columns=["clip", "class_name", "confidence", "correct"])
    return table.assign(video=[clip.rpartition("#")[0] for clip in table["clip"]])


TABLE = predictions(
    ("run/a#00000", "run", 0.99, True),
    ("run/a#00030", "run", 0.98, True),
    ("run/b#00000", "run", 0.90, True),
    ("sit/c#00000", "sit", 0.60, True),
    ("sit/c#00030", "sit", 0.55, True),
    ("run/d#00000", "run", 0.80, False),
    ("sit/e#00000", "sit", 0.95, False),
)


def chosen(num_successes: int, num_failures: int, table: pd.DataFrame = TABLE) -> list[str]:
    return list(select_clips(table, HeatmapsParams(successes=num_successes, failures=num_failures))["clip"])


def test_every_class_has_its_most_confident_clip_before_any_has_a_second() -> None:
    assert chosen(2, 0) == ["run/a#00000", "sit/c#00000"]


def test_a_second_clip_of_a_video_waits_for_other_videos() -> None:
    assert chosen(3, 0) == ["run/a#00000", "sit/c#00000", "run/b#00000"]
    assert chosen(9, 0)[3:] == ["run/a#00030", "sit/c#00030"]


def test_failures_are_wrong_clips_and_follow_the_successes() -> None:
    table = select_clips(TABLE, HeatmapsParams(successes=1, failures=5))
    assert list(table["clip"]) == ["run/a#00000", "sit/e#00000", "run/d#00000"]
    assert list(table["outcome"]) == ["success", "failure", "failure"]
    assert list(table["rule"]) == [RULES[outcome] for outcome in table["outcome"]]


def test_the_order_of_the_table_plays_no_part() -> None:
    assert chosen(4, 2, TABLE.sample(frac=1, random_state=3)) == chosen(4, 2)


def test_equal_confidence_falls_back_to_the_name() -> None:
    tied = predictions(("run/b#00000", "run", 0.5, True), ("run/a#00000", "run", 0.5, True))
    assert chosen(1, 0, tied) == ["run/a#00000"]


def test_nothing_wrong_means_no_failures() -> None:
    assert chosen(1, 4, TABLE[TABLE["correct"]]) == ["run/a#00000"]
    assert chosen(0, 0) == []
