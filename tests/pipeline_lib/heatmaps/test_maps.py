"""The fast picture of an attention map against the article's steps done one by one with scipy, and the scale of shares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from pipeline_lib.heatmaps.maps import MapUpsampler, percentile_level

SIDE = 280
SIGMA = 0.06 * SIDE


def random_map(grid: int, seed: int) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(0, 2, (grid, grid))
    return (np.exp(scores) / np.exp(scores).sum()).astype(np.float32)


def plain_picture(map_KK: np.ndarray) -> np.ndarray:
    """The article's steps, in float64: upsample, scale by minimum and maximum, smooth."""
    upsampled = zoom(map_KK.astype(np.float64), SIDE / len(map_KK), order=3, mode="reflect", grid_mode=True)
    scaled = (upsampled - upsampled.min()) / (upsampled.max() - upsampled.min()) * 255
    return gaussian_filter(scaled, SIGMA)


@pytest.mark.parametrize("grid", [3, 7, 13])
@pytest.mark.parametrize("seed", [0, 1])
def test_levels_are_the_plain_picture_to_one_rounding(grid: int, seed: int) -> None:
    map_KK = random_map(grid, seed)
    levels = MapUpsampler(grid, SIDE, SIGMA).levels(map_KK)
    # Half a level from rounding to uint8; the rest is float32, and scipy's spline filter at the edges of a small grid.
    assert np.abs(levels - plain_picture(map_KK)).max() <= 0.55


def test_kept_pixels_are_those_above_the_plain_percentile() -> None:
    map_KK = random_map(7, 2)
    levels = MapUpsampler(7, SIDE, SIGMA).levels(map_KK)
    kept = levels > percentile_level(np.bincount(levels.ravel(), minlength=256), 80)
    plain = plain_picture(map_KK)
    # The two may differ only where the value is within a level of the threshold.
    clear = np.abs(plain - np.percentile(plain, 80)) > 1
    assert np.array_equal(kept[clear], (plain > np.percentile(plain, 80))[clear])
    assert 0.18 < kept.mean() <= 0.2


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 3), (6, 1)])
def test_a_single_cell_is_brightest_over_its_own_square(row: int, column: int) -> None:
    map_KK = np.zeros((7, 7), np.float32)
    map_KK[row, column] = 1
    levels = MapUpsampler(7, SIDE, SIGMA).levels(map_KK)
    top = np.unravel_index(levels.argmax(), levels.shape)
    assert (top[0] // (SIDE // 7), top[1] // (SIDE // 7)) == (row, column)


def test_the_centre_cell_lands_on_the_centre() -> None:
    map_KK = np.zeros((7, 7), np.float32)
    map_KK[3, 3] = 1
    levels = MapUpsampler(7, SIDE, SIGMA).levels(map_KK)
    assert np.array_equal(levels, levels[::-1, ::-1])


def test_a_uniform_map_points_nowhere() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-9, (7, 7))
    levels = MapUpsampler(7, SIDE, SIGMA).levels((1 / 49 + noise).astype(np.float32))
    assert not levels.any()


@pytest.mark.parametrize("percentile", [0, 37.5, 80, 99.9])
def test_percentile_level_keeps_what_numpy_keeps(percentile: float) -> None:
    levels = np.random.default_rng(1).integers(0, 40, 997, dtype=np.uint8) * 6
    level = percentile_level(np.bincount(levels, minlength=256), percentile)
    assert np.array_equal(levels > level, levels > np.percentile(levels, percentile))


def shares(map_KK: np.ndarray) -> np.ndarray:
    return MapUpsampler(len(map_KK), SIDE, SIGMA).share_levels(map_KK)


@pytest.mark.parametrize("grid", [3, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_share_levels_are_the_smoothed_multiples_of_an_even_share(grid: int, seed: int) -> None:
    map_KK = random_map(grid, seed)
    upsampled = zoom(map_KK.astype(np.float64) * grid**2, SIDE / grid, order=3, mode="reflect", grid_mode=True)
    plain = np.clip((gaussian_filter(upsampled, SIGMA) - 1) / 3 * 255, 0, 255)
    # Levels are cut to whole ones, so that a share barely above 1 stays at 0.
    assert np.abs(shares(map_KK) + 0.5 - plain)[plain > 0].max() <= 0.6
    assert not shares(map_KK)[plain == 0].any()


def test_an_even_map_has_no_share_to_show_and_noise_hardly_any() -> None:
    assert not shares(np.full((7, 7), 1 / 49, np.float32)).any()
    noise_KK = np.random.default_rng(0).uniform(0.9, 1.1, (7, 7)) / 49
    assert shares(noise_KK).max() <= 8
    # The article's scale cannot tell it from focus.
    assert MapUpsampler(7, SIDE, SIGMA).levels(noise_KK).max() > 200


def test_four_times_an_even_share_is_full_but_for_the_smoothing() -> None:
    map_KK = np.full((7, 7), 1 / 49)
    map_KK[:, 4:] = 0
    map_KK[:, :2] = 4 / 49
    levels = shares(map_KK)
    assert levels[:, 0].min() >= 245
    assert 20 < levels[SIDE // 2, SIDE * 5 // 14] < 200
    assert not levels[:, -1].any()
