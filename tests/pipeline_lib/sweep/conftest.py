"""Studies without features: what trials compute is a formula."""

from __future__ import annotations

from functools import partial

import pytest
from pipeline_lib.workers.worker import Place

from pipeline_lib.compute.planning import Plan
from pipeline_lib.params import SweepParams, TrainParams
from pipeline_lib.sweep.space import make_space
from pipeline_lib.sweep.study import Study
from tests.pipeline_lib.sweep.objectives import EPOCHS, VAL_CLIPS

BASE = TrainParams(epochs=EPOCHS, learning_rate=3e-4, attention_penalty=0.5, alstm_units=256).of("alstm")


def make_study(folder, name="alstm", seed=0):
    """Open a study in a folder."""
    space = make_space(SweepParams(), BASE)
    return Study(folder / "study", name, space, seed=seed, val_clips=VAL_CLIPS)


def processes(number):
    """Return a plan of as many processes, with one trial at a time in each."""
    return Plan((Place(threads=1),) * number, slots=1, at_once=number)


@pytest.fixture
def open_study(tmp_path):
    """Open the same study each time."""
    return partial(make_study, tmp_path)
