"""The sweep stage, from feature files to its results, with real trainings."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.params import SweepParams, TrainParams
from pipeline_lib.streams.feature_files import FeatureWriter
from pipeline_lib.sweep.search import search
from pipeline_lib.train import train_model
from tests.pipeline_lib.conftest import ATTRIBUTES, CHANNELS, FRAMES, GRID, draw_features
from tests.pipeline_lib.sweep.test_resume import REPOSITORY

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.integration]

TRAIN = TrainParams(epochs=3, learning_rate=3e-3, alstm_units=16, conv_alstm_units=8, device="cpu")
SWEEP = SweepParams(trials=3, units=(8, 16), workers=1)


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})


@pytest.fixture(scope="session")
def store_without_test(tmp_path_factory, feature_store):
    """Return a store without features of the test split, whose clips, all the same in the table, have an impossible class."""
    path = tmp_path_factory.mktemp("no-test") / "features.h5"
    features, _ = draw_features(feature_store.clips)
    chosen = np.flatnonzero(feature_store.clips["split"].isin(["train", "val"]))
    with FeatureWriter(path, feature_store.clips.iloc[chosen], frame_shape=(GRID, GRID, CHANNELS), frames=FRAMES) as writer:
        writer.describe(ATTRIBUTES)
        for index in chosen:
            writer.append(features[index])
    others = ~feature_store.clips["split"].isin(["train", "val"])
    poisoned = feature_store.clips["class_name"].mask(others, "poison")
    return replace(feature_store, files=[path], clips=feature_store.clips.assign(class_name=poisoned))


def sweep(store, folder, params=SWEEP, base=TRAIN.of("alstm"), **options):  # noqa: B008 (frozen)
    directory = folder / "artifact"
    directory.mkdir(parents=True, exist_ok=True)
    return search(store.clips, store.files, directory, folder / "study", params, base, **options), directory


def test_searches_without_the_test_part_and_leaves_what_can_be_run(tmp_path, feature_store, store_without_test):
    told = []
    counts, directory = sweep(store_without_test, tmp_path, on_trial=told.append)
    assert {"trials": 3, "failed": 0}.items() <= counts.items()
    assert [trial.number for trial in told] == [0, 1, 2]
    best = TrainParams(**TRAIN.model_dump() | {"overrides": {"alstm": json.loads((directory / "best.json").read_text())}})
    trained = train_model(feature_store.clips, feature_store.files, tmp_path, None, best.of("alstm"))
    assert trained["best_val_clip_accuracy"] == counts["best_val_clip_accuracy"]
    chosen = told[counts["best_trial"]]
    assert json.loads((tmp_path / "history.json").read_text()) == [
        {name: value for name, value in row.items() if name != "seconds"} for row in chosen.history
    ]
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["study.db"]


@pytest.mark.slow
def test_the_test_part_changes_nothing(tmp_path, feature_store, store_without_test):
    _, with_test = sweep(feature_store, tmp_path / "with")
    _, without = sweep(store_without_test, tmp_path / "without")
    for name in ("trials.csv", "best.json", "importance.json"):
        assert (with_test / name).read_bytes() == (without / name).read_bytes()


@pytest.mark.slow
def test_two_workers_and_another_model(tmp_path, feature_store):
    params = SweepParams(trials=6, units=(8, 16), head_channels=(None, 4), workers=2)
    counts, directory = sweep(feature_store, tmp_path, params, TRAIN.of("conv_alstm"))
    assert counts["trials"] == 6
    assert counts["best_val_clip_accuracy"] >= counts["default_val_clip_accuracy"]
    searched = {"learning_rate", "dropout", "weight_decay", "units", "layers", "head_channels"}
    assert set(json.loads((directory / "best.json").read_text())) == searched
    assert searched <= set(pd.read_csv(directory / "trials.csv").columns)


def test_other_parameters_or_clips_begin_a_study_of_their_own(tmp_path, feature_store, monkeypatch):
    names = []
    monkeypatch.setattr("pipeline_lib.sweep.search.Study", lambda folder, name, *_, **__: names.append(name) or exit_early())
    fewer = replace(feature_store, clips=feature_store.clips.drop(index=0))
    relabelled = replace(feature_store, clips=feature_store.clips.assign(video="other"))
    base = TRAIN.of("alstm")
    for store, params, default in (
        (feature_store, SWEEP, base),
        (feature_store, SWEEP.model_copy(update={"trials": 99, "workers": 3, "enabled": True}), base),
        (relabelled, SWEEP, base),
        (fewer, SWEEP, base),
        (feature_store, SWEEP.model_copy(update={"dropout": (0.0, 0.1)}), base),
        (feature_store, SWEEP, base.model_copy(update={"patience": 9})),
        (feature_store, SWEEP, TRAIN.of("conv_alstm")),
    ):
        with pytest.raises(StopIteration):
            sweep(store, tmp_path, params, default)
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 5


def exit_early():
    raise StopIteration


@pytest.mark.slow
def test_what_keeps_the_default_from_training_is_told(tmp_path, feature_store):
    clips = feature_store.clips
    clips = clips[(clips["class_name"] != "sit") | (clips["split"] != "train")]
    with pytest.raises(ValueError, match=r"^no training video in 1 of 3 classes \(sit\)"):
        sweep(replace(feature_store, clips=clips), tmp_path)


@pytest.mark.slow
def test_nothing_reaches_the_terminal(tmp_path, feature_store):
    feature_store.clips.to_parquet(tmp_path / "clips.parquet")
    program = f"""
import pandas as pd
from pathlib import Path
from pipeline_lib.sweep.search import search
from tests.pipeline_lib.sweep.test_search import SWEEP, TRAIN
if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    params = SWEEP.model_copy(update={{"workers": 2}})
    files = [Path(name) for name in {[str(path) for path in feature_store.files]!r}]
    counts = search(pd.read_parquet(folder / "clips.parquet"), files, folder, folder / "study", params, TRAIN.of("alstm"))
    assert counts["trials"] == 3
"""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
