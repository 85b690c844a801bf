"""The oracle and the overlap of errors; summaries of fusions are tested with their evaluation."""

import numpy as np

from pipeline_lib.evaluate.complementarity import overlap_of_errors

# M members, V videos


def test_overlap_of_errors():
    correct_MV = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0]], dtype=bool)
    overlap = overlap_of_errors(correct_MV, np.arange(5))
    assert (overlap.oracle_accuracy, overlap.all_wrong, overlap.error_jaccard) == (0.6, 0.4, 0.5)
    assert overlap.oracle_interval[0] < 0.6 < overlap.oracle_interval[1]
    assert overlap_of_errors(np.ones((2, 3), dtype=bool), np.arange(3)).error_jaccard is None
