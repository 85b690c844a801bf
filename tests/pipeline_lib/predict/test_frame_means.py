from __future__ import annotations

import numpy as np

from pipeline_lib.predict.frame_means import FrameMeans


def test_means_are_over_the_windows_that_saw_a_frame():
    means = FrameMeans(4)
    means.add(0, np.array([[1.0], [2.0], [3.0]]))
    means.add(1, np.array([[4.0], [5.0]]))
    means.add(3, np.array([[9.0]]))
    np.testing.assert_array_equal(means.mean(), np.array([[1.0], [3.0], [4.0], [9.0]], np.float32))
