"""Measures of attention maps where their values are known."""

import numpy as np
import pytest

from pipeline_lib.evaluate.measures import CENTRE, UNIFORM, centre_bias, control_maps, drift, entropy


def one_hot(*cells, grid=3):
    """Return one clip's maps, all on the given cells."""
    return np.eye(grid * grid)[[row * grid + column for row, column in cells]][None]


def control(name, grid=7, frames=2):
    return np.broadcast_to(control_maps(grid)[name].ravel(), (1, frames, grid * grid))


@pytest.mark.parametrize("grid", [2, 7])
def test_controls_are_maps(grid):
    for map_KK in control_maps(grid).values():
        assert map_KK.sum() == pytest.approx(1)
        # To the bit: what is equally far from the centre must be ranked as equal.
        np.testing.assert_array_equal(map_KK, map_KK[::-1, ::-1])
        np.testing.assert_array_equal(map_KK, map_KK.T)


def test_entropy_is_1_spread_evenly_and_0_on_one_cell():
    assert entropy(control(UNIFORM)) == pytest.approx(1)
    assert (entropy(one_hot((0, 0), (2, 1))) == 0).all()
    half = np.full((1, 1, 16), [1 / 4] * 4 + [0] * 12)
    assert entropy(half) == pytest.approx(1 / 2)


def test_centre_bias_is_1_in_the_middle_0_when_even_and_negative_at_the_border():
    middle, corner = centre_bias(one_hot((1, 1), (0, 0)))[0]
    assert middle == 1
    # of nine cells one lies in the middle, four a third of the side away, four that times the root of 2
    assert corner == pytest.approx(1 - np.sqrt(2) * 9 / (4 + 4 * np.sqrt(2)))
    assert centre_bias(control(UNIFORM)) == pytest.approx(0)
    assert 0.2 < centre_bias(control(CENTRE))[0, 0] < 1


def test_drift_is_the_share_of_attention_that_moves():
    maps = np.array([[[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0.75, 0.25, 0]]])
    assert drift(maps).tolist() == [[0, 0, 1, 0.25]]
