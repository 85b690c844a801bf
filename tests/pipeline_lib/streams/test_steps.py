import numpy as np
import pytest

from pipeline_lib.streams.steps import steps_of_frames, valid_steps


def test_each_frame_is_its_own_step_where_steps_are_frames():
    np.testing.assert_array_equal(steps_of_frames(range(30), 30), np.arange(30))
    np.testing.assert_array_equal(valid_steps(range(30), [30, 7, 1]), [30, 7, 1])


def test_a_frame_takes_the_nearest_step_and_the_earlier_of_two():
    np.testing.assert_array_equal(steps_of_frames([1, 5, 9], 12), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(steps_of_frames([2], 4), [0, 0, 0, 0])


def test_a_step_is_valid_if_its_middle_frame_is_and_there_is_always_one():
    np.testing.assert_array_equal(valid_steps([3, 11, 19, 27], [30, 28, 27, 12, 4, 3, 1]), [4, 4, 3, 2, 1, 1, 1])
    assert valid_steps([3, 11], 12) == 2


@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_frames_beyond_the_last_middle_take_the_last_step(num_frames):
    assert steps_of_frames([0, 1], num_frames)[-1] == min(1, num_frames - 1)
