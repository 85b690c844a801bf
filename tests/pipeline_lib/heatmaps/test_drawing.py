"""Colours over the frame, and the strip of text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.heatmaps.overlay import Overlay
from pipeline_lib.heatmaps.panel import Panel

SIDE = 100
GREY = (90, 90, 90)


def ramp() -> np.ndarray:
    """Attention that rises from left to right."""
    return np.tile(np.linspace(0, 250, SIDE).astype(np.uint8), (SIDE, 1))


def drawn(opacity: float = 0.5, levels: np.ndarray | None = None) -> np.ndarray:
    frame = Image.new("RGB", (SIDE, SIDE), GREY)
    Overlay("turbo", opacity, 80).draw(frame, ramp() if levels is None else levels)
    return np.asarray(frame).astype(int)


def test_only_pixels_above_the_percentile_change() -> None:
    changed = (drawn() != GREY).any(axis=2)
    assert not changed[:, :80].any()
    assert changed[:, 81:].all()


def test_colour_comes_in_with_the_value_and_stays_below_the_opacity() -> None:
    distance = np.abs(drawn() - GREY).sum(axis=2)[0]
    assert 0 < distance[81] < distance[90] < distance[97]
    # turbo's upper end is red: at full opacity that colour itself, at half of it half way.
    full, half = drawn(1.0)[0, -1], drawn(0.5)[0, -1]
    assert full[0] > 120
    assert full[2] < 10
    assert np.abs(half - (full + GREY) / 2).max() <= 20


def test_uniform_attention_leaves_the_frame_alone() -> None:
    assert (drawn(levels=np.zeros((SIDE, SIDE), np.uint8)) == GREY).all()


def test_an_unknown_colour_map_is_named() -> None:
    with pytest.raises(ValueError, match=r"heatmaps\.colormap = 'magenta-ish'"):
        Overlay("magenta-ish", 0.5, 80)


def test_on_the_scale_of_shares_opacity_rises_evenly_from_nothing() -> None:
    frame = Image.new("RGB", (SIDE, SIDE), GREY)
    Overlay("gray", 0.5, None).draw(frame, ramp())
    # This colour map's brightness is the level: at 255 half of it shows, in proportion less below.
    levels = ramp()[0].astype(float)
    expected = 90 + (levels - 90) * 0.5 * levels / 255
    assert np.abs(np.asarray(frame)[0].mean(axis=1) - expected).max() < 2


@pytest.mark.parametrize("colormap", ["cividis", "viridis"])
def test_colour_maps_for_the_colour_blind_rise_in_brightness(colormap: str) -> None:
    frame = Image.new("RGB", (SIDE, SIDE))
    Overlay(colormap, 1.0, 0).draw(frame, ramp())
    luminance = np.asarray(frame.convert("L")).astype(int)[0, 30:]  # where the colour has come in
    assert (np.diff(luminance) >= 0).all()
    assert luminance[-1] - luminance[0] > 80


def strip(true: str | None, predicted: str, background: int = 0, side: int = 400) -> np.ndarray:
    frame = Image.new("RGB", (side, side), (background,) * 3)
    Panel(side).draw(frame, true, predicted, 0.9)
    return np.asarray(frame).astype(int)


def test_right_is_green_and_wrong_is_red_and_the_marks_differ() -> None:
    right, wrong = strip("run", "run", side=800), strip("sit", "run", side=800)
    second_line = slice(52, 100)
    assert right[second_line][..., 1].max() > right[second_line][..., 0].max()
    assert wrong[second_line][..., 0].max() > wrong[second_line][..., 1].max()
    mark = (second_line, slice(0, 45))
    ink_right, ink_wrong = (picture[mark].sum(axis=2) > 250 for picture in (right, wrong))
    assert ink_right.sum() > 15
    assert (ink_right != ink_wrong).sum() > 15


@pytest.mark.parametrize("background", [0, 128, 255])
def test_text_stands_out_on_any_background(background: int) -> None:
    luminance = strip("run", "run", background)[:50].mean(axis=2)
    assert luminance.max() - np.median(luminance) > 100


def test_a_long_class_name_is_shrunk_to_fit() -> None:
    picture = strip("a_class_name_that_nobody_would_ever_want_to_type_twice_in_a_row", "run", side=200)
    ink = picture.sum(axis=2) > 250
    assert ink[:, -8:-4].any() or ink[:, -14:-4].any()
    assert not ink[:, -3:].any()


def test_the_strip_leaves_most_of_the_frame_alone() -> None:
    picture = strip("run", "run", 200)
    assert (picture[0] != 200).all()
    assert (picture[60:] == 200).all()


def test_without_a_true_label_the_prediction_stands_alone_and_is_neither_right_nor_wrong() -> None:
    alone, judged = strip(None, "run", 200), strip("run", "run", 200)
    heights = [int((picture[:, 0] != 200).any(axis=1).sum()) for picture in (alone, judged)]
    assert heights[0] < 0.6 * heights[1]
    ink = alone[: heights[0]][alone[: heights[0]].sum(axis=2) > 600]
    assert len(ink) > 50
    assert np.ptp(ink, axis=1).max() <= 10
