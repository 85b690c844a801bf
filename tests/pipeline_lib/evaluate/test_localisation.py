"""Boxes from attention, from maps and boxes made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.localisation import (
    BOX_ACCURACY,
    ORACLE,
    THRESHOLDS,
    TUBE_IOU,
    boxes_of_maps,
    intersection_over_union,
    largest_boxes,
    levels,
    localise,
    smooth,
    whole_cells_iou,
)
from pipeline_lib.evaluate.pointing import find_actor

COLUMNS = ["video", "time_seconds", "x0", "y0", "x1", "y1"]
FPS, FRAMES, GRID = 10.0, 4, 4


def one_cell(row, column, grid=GRID):
    map_KK = np.zeros((grid, grid))
    map_KK[row, column] = 1
    return map_KK


def make_test(videos, clips=1, valid=FRAMES):
    rows = [(f"{video}#{clip}", video, clip * FRAMES, valid) for video in videos for clip in range(clips)]
    return pd.DataFrame(rows, columns=["clip", "video", "first_frame", "valid_frames"])


def localised(maps_NTKK, boxes, videos=("a",), clips=1, valid=FRAMES):
    test = make_test(videos, clips, valid)
    attention_NTI = np.asarray(maps_NTKK, dtype=float).reshape(len(test), FRAMES, -1)
    grid = round(attention_NTI.shape[2] ** 0.5)
    actor = find_actor(test, FRAMES, grid, pd.DataFrame(boxes, columns=COLUMNS), fps=FPS)
    return localise(test, attention_NTI, actor)


def test_half_of_the_range_of_one_cell_is_that_cell():
    box_T4 = boxes_of_maps(np.stack([one_cell(1, 2)] * 6), 0.5)
    assert box_T4.tolist() == [[0.5, 0.25, 0.75, 0.5]] * 6


def test_a_low_threshold_gives_the_cell_and_its_surroundings():
    low_4, high_4 = (boxes_of_maps(one_cell(1, 1)[None], threshold)[0] for threshold in (0.05, 0.95))
    assert (low_4[:2] < [0.25, 0.25]).all()
    assert (low_4[2:] > [0.5, 0.5]).all()
    assert (high_4[:2] > [0.25, 0.25]).all()
    assert (high_4[2:] < [0.5, 0.5]).all()


def test_the_uniform_map_boxes_the_whole_frame():
    assert boxes_of_maps(np.full((2, 7, 7), 1 / 49), 0.9).tolist() == [[0, 0, 1, 1]] * 2


def test_the_range_and_not_the_sharpness_decides():
    flat_TKK = 1 / 16 + 1e-3 * np.stack([one_cell(0, 3)] * 3)
    assert boxes_of_maps(flat_TKK, 0.5).tolist() == boxes_of_maps(np.stack([one_cell(0, 3)] * 3), 0.5).tolist()


def test_the_largest_component_is_boxed_and_frames_are_not_connected():
    level_TSS = np.zeros((2, 8, 8))
    level_TSS[0, 0:2, 0:2], level_TSS[0, 4:7, 3:8] = 1.0, 0.6
    level_TSS[1, 0:2, 0:3] = 1.0
    assert largest_boxes(level_TSS, 0.5).tolist() == [[3 / 8, 4 / 8, 1, 7 / 8], [0, 0, 3 / 8, 2 / 8]]
    assert largest_boxes(level_TSS, 0.7)[0].tolist() == [0, 0, 2 / 8, 2 / 8]


def test_components_touch_by_their_sides_only():
    level_TSS = np.zeros((1, 4, 4))
    level_TSS[0, 0, 0] = level_TSS[0, 1, 1] = level_TSS[0, 1, 2] = 1.0
    assert largest_boxes(level_TSS, 0.5).tolist() == [[1 / 4, 1 / 4, 3 / 4, 2 / 4]]


def test_levels_run_from_zero_to_one():
    level_TSS = levels(np.random.default_rng(0).dirichlet(np.ones(9), 5).reshape(5, 3, 3))
    assert level_TSS.shape == (5, 12, 12)
    assert level_TSS.min(axis=(1, 2)).tolist() == [0] * 5
    assert level_TSS.max(axis=(1, 2)).tolist() == [1] * 5


def test_smoothing_weighs_five_frames():
    maps_TKK = np.zeros((9, 1, 1))
    maps_TKK[4] = 1
    weights = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    assert smooth(maps_TKK)[2:7, 0, 0] == pytest.approx(weights / weights.sum())
    assert smooth(maps_TKK)[[0, 1, 7, 8]].tolist() == [[[0]]] * 4


def test_iou_by_hand():
    first_R4 = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 1], [0, 0, 0.2, 0.2]])
    second_R4 = np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 1], [0.5, 0.5, 1, 1]])
    assert intersection_over_union(first_R4, second_R4) == pytest.approx([1, 1 / 3, 0])


def test_accuracy_counts_the_frames_whose_iou_reaches_the_limit():
    """A box of one cell: equal to the truth, twice as wide (IoU 1/2), and elsewhere."""
    boxes = [("a", 0.0, 0.5, 0.25, 0.75, 0.5), ("a", 0.1, 0.5, 0.25, 1.0, 0.5), ("a", 0.2, 0, 0.75, 0.25, 1)]
    found = localised(np.stack([[one_cell(1, 2)] * FRAMES]), boxes)
    at_half = THRESHOLDS.tolist().index(0.5)
    assert found.thresholds["model", TUBE_IOU] <= THRESHOLDS[at_half]
    assert found.values_F["model", "box_accuracy_50"].tolist() == [1, 1, 0]
    assert found.values_F["model", "box_accuracy_70"].tolist() == [1, 0, 0]
    assert found.counts == {"videos": 1, "frames": 3, "frames_with_several": 0, "frames_without": 1}


def test_each_map_has_the_threshold_that_suits_it():
    """An actor four cells large around the peak: half of the range gives one cell, less gives more."""
    found = localised(np.stack([[one_cell(1, 1)] * FRAMES]), [("a", t / 10, 0.125, 0.125, 0.625, 0.625) for t in range(FRAMES)])
    assert found.thresholds["model", TUBE_IOU] < 0.5
    assert found.tube_V["model"] > 0.6
    assert set(found.thresholds) == {
        (name, measure) for name in ("model", "uniform", "centre") for measure in (*BOX_ACCURACY, TUBE_IOU)
    }


def test_a_tube_is_the_mean_over_the_videos_frames_with_a_box_and_runs_across_clips():
    boxes = [("a", t / 10, 0.25, 0.25, 0.5, 0.5) for t in range(6)] + [("b", 0.0, 0, 0, 1, 1)]
    maps_NTKK = np.stack([[one_cell(1, 1)] * FRAMES] * 4)
    found = localised(maps_NTKK, boxes, videos=("a", "b"), clips=2)
    assert found.video_V.tolist() == ["a", "b"]
    # the whole frame is b's truth: the uniform map is right there, and 1/16 on a
    assert found.tube_V["uniform"] == pytest.approx([1 / 16, 1])
    assert found.counts["frames_without"] == 16 - 7
    tubes = found.tubes
    assert len(tubes) == 16
    assert tubes.groupby("clip").size().to_dict() == {"a#0": 4, "a#1": 4, "b#0": 4, "b#1": 4}
    own = tubes[tubes["clip"].str.startswith("a")]
    assert own["iou"].notna().sum() == 6
    assert own["iou"].mean() == pytest.approx(found.tube_V["model"][0])
    assert own["truth"].tolist()[0] == [0.25, 0.25, 0.5, 0.5]
    assert own["truth"].tolist()[-1] == []


def test_smoothing_does_not_depend_on_where_a_video_is_cut():
    rng = np.random.default_rng(0)
    maps_TKK = rng.dirichlet(np.ones(16), 2 * FRAMES).reshape(-1, GRID, GRID)
    boxes = [("a", t / 10, 0.1, 0.2, 0.6, 0.7) for t in range(2 * FRAMES)]
    found = localised(maps_TKK.reshape(2, FRAMES, GRID, GRID), boxes, clips=2)
    box_T4 = boxes_of_maps(maps_TKK, found.thresholds["model", TUBE_IOU])
    assert np.array_equal(found.tubes[["x0", "y0", "x1", "y1"]].to_numpy(), box_T4)


def test_of_two_actors_the_nearest_counts():
    boxes = [("a", t / 10, *box) for t in range(FRAMES) for box in ((0, 0, 0.2, 0.2), (0.5, 0.25, 0.75, 0.5))]
    found = localised(np.stack([[one_cell(1, 2)] * FRAMES]), boxes)
    assert found.tube_V["model"] == pytest.approx([1])
    assert found.counts == {"videos": 1, "frames": 4, "frames_with_several": 4, "frames_without": 0}
    assert found.tubes["truth"].tolist()[0] == [0, 0, 0.2, 0.2, 0.5, 0.25, 0.75, 0.5]


def test_no_box_of_whole_cells_is_better_than_the_oracles():
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.uniform(0, 1, (2, 300, 2)), axis=0)
    boxes = [("a", t / 10, *np.minimum(low[t], high[t] - 0.01), *high[t]) for t in range(300)]
    test = pd.DataFrame({"clip": ["a#0"], "video": ["a"], "first_frame": [0], "valid_frames": [300]})
    actor = find_actor(test, 300, GRID, pd.DataFrame(boxes, columns=COLUMNS), fps=FPS)
    best_F = whole_cells_iou(actor, GRID)
    edges = np.arange(GRID + 1) / GRID
    every = [(x0, y0, x1, y1) for x0 in edges for x1 in edges if x1 > x0 for y0 in edges for y1 in edges if y1 > y0]
    iou_BF = [intersection_over_union(np.broadcast_to(box, actor.box_R4.shape), actor.box_R4) for box in every]
    assert best_F == pytest.approx(np.max(iou_BF, axis=0))


def test_the_oracle_is_exact_for_whole_cells():
    found = localised(np.stack([[one_cell(3, 3)] * FRAMES]), [("a", 0.0, 0.25, 0.0, 0.75, 1.0)])
    assert found.tube_V[ORACLE].tolist() == [1]
    assert (ORACLE, TUBE_IOU) not in found.thresholds


def test_padded_frames_have_no_part():
    maps_NTKK = np.stack([[one_cell(1, 1), one_cell(1, 1), one_cell(3, 3), one_cell(3, 3)]])
    boxes = [("a", t / 10, 0.25, 0.25, 0.5, 0.5) for t in range(FRAMES)]
    found = localised(maps_NTKK, boxes, valid=2)
    assert found.tube_V["model"] == pytest.approx([1])
    assert found.counts["frames_without"] == 0
    assert len(found.tubes) == 2


def test_another_map_is_boxed_like_the_models():
    """With the threshold that suits it; its values do not change the model's."""
    right, wrong = one_cell(1, 2), one_cell(3, 0)
    test = make_test(["a"])
    boxes = pd.DataFrame([("a", frame / FPS, 0.5, 0.25, 0.75, 0.5) for frame in range(FRAMES)], columns=COLUMNS)
    actor = find_actor(test, FRAMES, GRID, boxes, fps=FPS)
    maps = {name: np.stack([map_KK] * FRAMES).reshape(1, FRAMES, -1) for name, map_KK in (("right", right), ("wrong", wrong))}
    found = localise(test, maps["wrong"], actor, {"right": maps["right"]})
    alone = localise(test, maps["wrong"], actor)
    assert found.tube_V["right"] == [1]
    assert found.tube_V["model"] == alone.tube_V["model"] == [0]
    assert found.values_F["right", "box_accuracy_70"].tolist() == [1] * FRAMES
    assert 0.4 < found.thresholds["right", TUBE_IOU] < 0.6
    assert list(found.tube_V) == ["model", "uniform", "centre", "right", ORACLE]
    pd.testing.assert_frame_equal(found.tubes, alone.tubes)
