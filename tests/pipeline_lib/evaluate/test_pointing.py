"""Attention against boxes, by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.pointing import find_actor, mass_in_box, points_at_actor

COLUMNS = ["video", "time_seconds", "x0", "y0", "x1", "y1"]
UNIFORM = np.full(4, 1 / 4)


def actor_in(*boxes, frames=1, num_frames=4, grid=2, first_frame=0):
    test = pd.DataFrame({"video": ["a"], "first_frame": [first_frame], "valid_frames": [frames]})
    return find_actor(test, num_frames, grid, pd.DataFrame(boxes, columns=COLUMNS), fps=15.0)


def test_frames_meet_the_box_nearest_in_time_of_their_own_video():
    boxes = [("a", 2.0, 0.5, 0.0, 1.0, 0.5), ("a", 2.06, 0.0, 0.0, 1.0, 0.5), ("b", 2.1, 0, 0, 1, 1), ("a", 2.3, 0, 0, 1, 1)]
    # Frames at 2.0, 2.0667 and 2.1333 s; the last has no box near; the padded fourth does not count.
    actor = actor_in(*boxes, frames=3, first_frame=30)
    assert actor.time_F.tolist() == [0, 1]
    assert actor.inside_FI.tolist() == [[False, True, False, False], [True, True, False, False]]
    attention_FI = np.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]])
    assert points_at_actor(attention_FI, actor).tolist() == [1, 0]


def test_pointing_anywhere_scores_the_share_of_cell_centres_in_the_box():
    actor = actor_in(("a", 0.0, 0.0, 0.0, 1.0, 0.6))
    assert points_at_actor(UNIFORM[None], actor) == pytest.approx(1 / 2)
    assert points_at_actor(np.array([[0.4, 0.1, 0.4, 0.1]]), actor) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("box", "mass"),
    [
        ((0.0, 0.0, 0.5, 1.0), 0.7),  # the left half, whole
        ((0.0, 0.0, 0.25, 1.0), 0.35),  # half of it
        ((0.25, 0.25, 0.75, 0.75), 0.25),  # a quarter of every cell
        ((-1.0, -1.0, 2.0, 2.0), 1.0),
    ],
)
def test_a_cell_half_covered_counts_half(box, mass):
    actor = actor_in(("a", 0.0, *box))
    assert mass_in_box(np.array([[0.4, 0.1, 0.3, 0.2]]), actor) == pytest.approx(mass)


def test_the_uniform_map_has_the_boxs_share_of_the_frame_in_it():
    actor = actor_in(("a", 0.0, 0.1, 0.2, 0.4, 0.9), grid=7)
    assert mass_in_box(np.full((1, 49), 1 / 49), actor) == pytest.approx(0.3 * 0.7)


def test_without_boxes_of_the_test_videos_there_is_no_actor_and_it_is_said(caplog):
    assert actor_in(("b", 0.0, 0, 0, 1, 1)) is None
    assert "attention is not checked" in caplog.text


TWO = [("a", 0.0, 0.0, 0.0, 0.4, 0.4), ("a", 0.0, 0.5, 0.0, 1.0, 0.5), ("a", 1 / 15, 0.0, 0.5, 1.0, 1.0)]


def test_of_two_actors_either_may_be_pointed_at():
    actor = actor_in(*TWO, frames=2)
    assert actor.count_boxes().tolist() == [2, 1]
    assert actor.inside_FI.tolist() == [[True, True, False, False], [False, False, True, True]]
    attention_FI = np.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]])
    assert points_at_actor(attention_FI, actor).tolist() == [1, 1]


def test_the_actor_with_the_most_attention_counts():
    attention_FI = np.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]])
    assert mass_in_box(attention_FI, actor_in(*TWO, frames=2)) == pytest.approx([0.7, 0.8])


def test_the_order_of_rows_changes_nothing():
    one, other = (actor_in(*rows, frames=2) for rows in (TWO, TWO[::-1]))
    attention_FI = np.random.default_rng(0).dirichlet(np.ones(4), 2)
    assert points_at_actor(attention_FI, one).tolist() == points_at_actor(attention_FI, other).tolist()
    assert mass_in_box(attention_FI, one).tolist() == mass_in_box(attention_FI, other).tolist()
