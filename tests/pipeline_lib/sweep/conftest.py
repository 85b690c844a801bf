"""Studies without features: what trials compute is a formula."""

from __future__ import annotations

from functools import partial

import pytest

from pipeline_lib.compute.engine import Needs
from pipeline_lib.params import SweepParams, TrainParams
from pipeline_lib.sweep.running import run_study
from pipeline_lib.sweep.space import make_space
from pipeline_lib.sweep.storage import study_location
from pipeline_lib.sweep.study import Study
from tests.pipeline_lib.sweep.objectives import EPOCHS, VAL_CLIPS

BASE = TrainParams(epochs=EPOCHS, learning_rate=3e-4, attention_penalty=0.5, alstm_units=256).of("alstm")


def make_study(folder, name="study", seed=0, database=None):
    """Open a study in a folder or database."""
    return Study(study_location(folder / name, database), make_space(SweepParams(), BASE), seed=seed, val_clips=VAL_CLIPS)


def search(study, objective, trials, at_once=1):
    """Run a study and return what was told of its trials."""
    told = []
    run_study(study, objective, at_once, Needs(cpus=1), trials, told.append)
    assert sorted(told, key=lambda trial: trial.number) == study.trials()
    return told


@pytest.fixture
def open_study(tmp_path):
    """Open the same study each time."""
    return partial(make_study, tmp_path)
