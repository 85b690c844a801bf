"""The magnitude of flow as a map, of a rendered video in which one square moves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate import flow_magnitude
from pipeline_lib.evaluate.flow_magnitude import SAMPLES, flow_maps
from pipeline_lib.evaluate.localisation import localise
from pipeline_lib.evaluate.measures import FLOW, MODEL
from pipeline_lib.evaluate.pointing import find_actor, points_at_actor
from pipeline_lib.video.writing import VideoWriter

SIDE, SQUARE, FRAMES, CLIP, GRID, FPS, SPEED = 112, 32, 10, 6, 7, 15.0, 4
TEST = pd.DataFrame(
    {
        "clip": ["moves#0", "moves#6", "other#0"],
        "video": ["moves", "moves", "other"],
        "first_frame": [0, 6, 0],
        "valid_frames": [6, 4, 6],
    }
)


def left_of(frame):
    return 16 + SPEED * frame


@pytest.fixture
def video(tmp_path):
    """Write a textured square that moves to the right over a still, textured background."""
    rng = np.random.default_rng(0)
    background, square = (
        rng.integers(40, 200, (side // 4, side // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1) for side in (SIDE, SQUARE)
    )
    path = tmp_path / "moves.mp4"
    with VideoWriter(path, width=SIDE, height=SIDE, fps=FPS) as writer:
        for number in range(FRAMES):
            frame = background.copy()
            frame[64 : 64 + SQUARE, left_of(number) : left_of(number) + SQUARE] = square
            writer.write(frame)
    return path


@pytest.fixture
def actor():
    boxes = [
        ("moves", frame / FPS, left_of(frame) / SIDE, 64 / SIDE, (left_of(frame) + SQUARE) / SIDE, (64 + SQUARE) / SIDE)
        for frame in range(FRAMES)
    ]
    columns = ["video", "time_seconds", "x0", "y0", "x1", "y1"]
    return find_actor(TEST, CLIP, GRID, pd.DataFrame(boxes, columns=columns), fps=FPS)


def test_what_moves_is_where_the_actor_is(video, actor):
    map_NTI = flow_maps(TEST, CLIP, GRID, actor.clip_F, {"moves": video}.__getitem__)
    assert points_at_actor(map_NTI[actor.clip_F, actor.time_F], actor).mean() > 0.9
    uniform_NTI = np.full_like(map_NTI, 1 / GRID**2)
    found = localise(TEST, uniform_NTI, actor, {FLOW: map_NTI})
    assert found.tube_V[FLOW] > 2 * found.tube_V[MODEL]
    assert found.values_F[FLOW, "box_accuracy_50"].mean() > 0.9
    assert found.values_F[MODEL, "box_accuracy_50"].mean() == 0


def test_maps_are_shares_of_each_frame_and_uniform_where_nothing_is_known(video, actor):
    map_NTI = flow_maps(TEST, CLIP, GRID, actor.clip_F, {"moves": video}.__getitem__)
    np.testing.assert_allclose(map_NTI.sum(axis=2), 1)
    assert map_NTI[0].max() > 3 / GRID**2
    for padding_or_other_video in (map_NTI[1, 4:], map_NTI[2]):
        np.testing.assert_allclose(padding_or_other_video, 1 / GRID**2)


def test_a_video_is_decoded_once_for_all_models_of_a_fold(video, actor, monkeypatch):
    asked = []
    decode = flow_magnitude.process_ahead
    monkeypatch.setattr(flow_magnitude, "process_ahead", lambda *args, **options: asked.append(1) or decode(*args, **options))
    maps = [flow_maps(TEST, CLIP, grid, actor.clip_F, {"moves": video}.__getitem__) for grid in (GRID, GRID, 6)]
    assert asked == [1]
    assert maps[2].shape == (3, CLIP, 36)
    np.testing.assert_array_equal(maps[0], maps[1])


@pytest.mark.parametrize("grid", [1, 5, 7, 14])
def test_cells_keep_all_motion_whether_or_not_their_borders_are_samples(grid):
    magnitude_FSS = np.random.default_rng(0).integers(0, 127, (2, SAMPLES, SAMPLES), np.uint8)
    magnitude_FSS[1] = 0
    magnitude_FSS[1, : SAMPLES // 2] = 80
    cells_FKK = flow_magnitude._to_cells(magnitude_FSS, grid).reshape(2, grid, grid)
    rows_K = cells_FKK[1].sum(axis=1)
    assert cells_FKK.sum(axis=(1, 2)) == pytest.approx(np.ones(2))
    assert rows_K[: grid // 2] == pytest.approx(np.full(grid // 2, 2 / grid))
    assert rows_K[(grid + 1) // 2 :] == pytest.approx(np.zeros(grid // 2))


def test_a_still_frame_is_uniform():
    still_FSS = np.zeros((1, SAMPLES, SAMPLES), np.uint8)
    np.testing.assert_allclose(flow_magnitude._to_cells(still_FSS, GRID), 1 / GRID**2)
