"""The sweep stage, from feature files to its results, with real trainings."""

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.artifacts.remote import Remote
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.shipping import Shipper
from pipeline_lib.params import SweepParams, TrainParams
from pipeline_lib.streams.feature_files import FeatureWriter
from pipeline_lib.sweep.search import _plan, search
from pipeline_lib.train import train_model
from tests.pipeline_lib.conftest import ATTRIBUTES, CHANNELS, FRAMES, GRID, draw_features

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.integration]

TRAIN = TrainParams(epochs=3, learning_rate=3e-3, alstm_units=16, conv_alstm_units=8, device="cpu")
SWEEP = SweepParams(trials=3, units=(8, 16), workers=1)


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
    return search(
        store.clips, store.files, directory, folder / "study", params, base, features_bytes=1000, **options
    ), directory


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
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["study.journal"]


@pytest.mark.slow
def test_the_test_part_changes_nothing(tmp_path, feature_store, store_without_test):
    _, with_test = sweep(feature_store, tmp_path / "with")
    _, without = sweep(store_without_test, tmp_path / "without")
    for name in ("trials.csv", "best.json", "importance.json"):
        assert (with_test / name).read_bytes() == (without / name).read_bytes()


@pytest.mark.slow
def test_a_database_changes_nothing_but_the_place(tmp_path, feature_store, postgresql):
    _, in_folder = sweep(feature_store, tmp_path / "folder")
    _, in_database = sweep(feature_store, tmp_path / "database", database=postgresql.address("searches"))
    for name in ("trials.csv", "best.json", "importance.json"):
        assert (in_database / name).read_bytes() == (in_folder / name).read_bytes()
    assert list((tmp_path / "database" / "study").iterdir()) == []


def test_with_a_database_trials_run_on_a_node_without_the_drivers_folder(tmp_path, feature_store, postgresql, monkeypatch):
    store = SharedStore(tmp_path / "driver", Remote(f"file://{tmp_path / 'bucket'}"))
    shipper = Shipper(store)
    monkeypatch.setenv("HAR_CACHE", str(tmp_path / "node"))

    def run_on_a_node(function, *args, needs):
        with pickle.loads(shipper.pack((function, args, {}))) as (received, received_args, _):
            return received(*received_args)

    monkeypatch.setattr("pipeline_lib.sweep.running.run_at", run_on_a_node)
    counts, _ = sweep(feature_store, tmp_path / "driver", database=postgresql.address("nodes"))
    store.close()
    assert {"trials": 3, "failed": 0}.items() <= counts.items()


@pytest.mark.slow
def test_two_workers_and_another_model(tmp_path, feature_store):
    params = SweepParams(trials=6, units=(8, 16), head_channels=(None, 4), workers=2)
    counts, directory = sweep(feature_store, tmp_path, params, TRAIN.of("conv_alstm"))
    assert counts["trials"] == 6
    assert counts["best_val_clip_accuracy"] >= counts["default_val_clip_accuracy"]
    searched = {"learning_rate", "dropout", "weight_decay", "units", "layers", "head_channels"}
    assert set(json.loads((directory / "best.json").read_text())) == searched
    assert searched <= set(pd.read_csv(directory / "trials.csv").columns)


@pytest.mark.slow
def test_what_keeps_the_default_from_training_is_told(tmp_path, feature_store):
    clips = feature_store.clips
    clips = clips[(clips["class_name"] != "sit") | (clips["split"] != "train")]
    with pytest.raises(ValueError, match=r"^no training video in 1 of 3 classes \(sit\)"):
        sweep(replace(feature_store, clips=clips), tmp_path)


@pytest.mark.parametrize(
    ("device", "workers", "cores", "gpus", "at_once"),
    [
        ("cpu", None, 4, 0, 4),
        ("cpu", None, 64, 0, 8),
        ("cpu", 1, 4, 0, 1),
        ("cpu", 3, 2, 0, 3),
        ("cpu", None, 1, 0, 1),
        ("auto", None, 16, 1, 4),
        ("auto", None, 16, 8, 8),
        ("auto", 2, 16, 1, 2),
        ("auto", 1, 16, 8, 1),
    ],
)
def test_as_many_trials_run_at_once_as_there_is_room_for(monkeypatch, device, workers, cores, gpus, at_once):
    for module in ("compute.planning", "sweep.search"):
        monkeypatch.setattr(f"pipeline_lib.{module}.num_cores", lambda: cores)
        monkeypatch.setattr(f"pipeline_lib.{module}.num_gpus", lambda: gpus)
    monkeypatch.setattr("pipeline_lib.compute.planning.smallest_gpu_bytes", lambda: 80 * 1024**3)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=512 * 1024**3))
    base = TRAIN.model_copy(update={"device": device}).of("alstm")
    needs, number = _plan(0, SweepParams(workers=workers), base)
    assert number == at_once
    assert number * needs.gpus <= gpus if gpus else number * needs.cpus <= cores or number == 1
