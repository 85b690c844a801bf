"""Several folds, several seeds and a search in one run, and what each of them may share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest

pytestmark = pytest.mark.slow  # three flows with several folds and seeds; test_caching and test_tracking are quicker

SEVERAL = ("chunk.fold=[1,2,3]", "train.seeds=[0,1]", "train.models=[alstm, mean_pool]")


@pytest.fixture(scope="module")
def several(tmp_path_factory, tiny_collection, prefect_server):
    from tests.e2e.conftest import CLASSES, NUM_VIDEOS, Pipeline

    folder = tmp_path_factory.mktemp("several")
    collection = Path(shutil.copytree(tiny_collection, folder / "collection"))
    pipeline = Pipeline(folder, collection)
    for fold in (2, 3):
        for class_name in CLASSES:
            first = collection / "splits" / f"{class_name}_test_split1.txt"
            names = [line.rsplit(maxsplit=1)[0] for line in first.read_text(encoding="utf-8").splitlines()]
            # Fold 3 is fold 1 again: its trainings have the same keys, and are under way at the same time.
            labels = [2 if (number + fold) % NUM_VIDEOS < 3 else 1 for number in range(NUM_VIDEOS)]
            lines = [f"{name} {label} \n" for name, label in zip(names, labels, strict=True)]
            first.with_name(f"{class_name}_test_split{fold}.txt").write_text("".join(lines), encoding="utf-8")
    return pipeline, pipeline.run(*SEVERAL)


def test_every_training_run_is_a_child_and_features_are_made_once(several):
    from mlflow import MlflowClient

    pipeline, summary = several
    assert {name: len(row["training_runs"]) for name, row in summary["models"].items()} == {"alstm": 6, "mean_pool": 6}
    assert len(list((pipeline.workspace / "artifacts" / "features").iterdir())) == 4
    assert len(list((pipeline.workspace / "artifacts" / "train").iterdir())) == 2 * 2 * 2
    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    parent = summary["mlflow"]["parent_run_id"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    places = {(run.data.tags["model"], run.data.tags["fold"], run.data.tags["seed"]) for run in children}
    assert len(children) == len(places) == 12
    assert "alstm fold 2 seed 1" in {run.info.run_name for run in children}
    assert all(run.info.status == "FINISHED" for run in children)


def test_results_are_mean_and_deviation_over_training_runs(several):
    _, summary = several
    for name, row in summary["models"].items():
        accuracies = [training_run["video_accuracy"] for training_run in row["training_runs"]]
        assert row["video_accuracy"] == pytest.approx(mean(accuracies))
        assert row["standard_deviation"]["video_accuracy"] == pytest.approx(stdev(accuracies))
        best = min(row["training_runs"], key=lambda training_run: training_run["val_calibrated_loss"])
        assert row["checkpoint"] == best["checkpoint"], name
        assert row["mlflow_run_id"] == best["mlflow_run_id"], name
    (pair,) = [pair for pair in summary["results"]["pairs"] if pair["second"] == "mean_pool"]
    assert pair["first"] == "alstm"


def test_one_of_the_training_runs_alone_is_answered_from_artifacts(several):
    pipeline, summary = several
    alone = pipeline.run("chunk.fold=2", "train.seed=1", "train.models=[alstm]")
    assert alone["stages"]["train"]["cache"] == "hit"
    (same,) = [
        training_run
        for training_run in summary["models"]["alstm"]["training_runs"]
        if (training_run["fold"], training_run["seed"]) == (2, 1)
    ]
    assert alone["models"]["alstm"]["video_accuracy"] == same["video_accuracy"]
    assert Path(alone["models"]["alstm"]["checkpoint"]) == Path(same["checkpoint"])


@pytest.mark.slow
def test_a_tuned_backbone_is_of_one_fold_alone(several):
    pipeline, _ = several
    summary = pipeline.run(
        "chunk.fold=[1,2]", "train.models=[mean_pool]", "finetune.enabled=true", "finetune.epochs=1", until="features"
    )
    assert summary["stages"]["features"]["cache"] == "miss"
    assert len(list((pipeline.workspace / "artifacts" / "finetune").iterdir())) == 2
    assert len(list((pipeline.workspace / "artifacts" / "features").iterdir())) == 4 + 8


SEARCH = (
    "sweep.enabled=true",
    "sweep.models=[alstm]",
    "sweep.workers=1",
    "sweep.trials=3",
    "sweep.units=[4,8]",
    "train.models=[alstm, mean_pool]",
)


@pytest.fixture(scope="module")
def searched(several):
    pipeline, _ = several
    return pipeline, pipeline.run(*SEARCH)


def test_the_best_of_a_search_is_tested_beside_the_default(searched):
    _, summary = searched
    assert list(summary["models"]) == ["alstm", "alstm_tuned", "mean_pool"]
    assert summary["stages"]["sweep"]["cache"] == "miss"
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "Hyper-parameter search of alstm" in page


def test_trials_are_children_of_the_search(searched):
    from mlflow import MlflowClient

    _, summary = searched
    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    parent = client.get_run(summary["mlflow"]["parent_run_id"])
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    (sweep,) = [run for run in children if run.data.tags["stage"] == "sweep"]
    trials = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{sweep.info.run_id}'")
    assert {run.data.tags["trial"] for run in trials} == {"0", "1", "2"}
    assert all(run.info.status == "FINISHED" for run in (*trials, sweep))


def test_the_best_is_a_parameter_file_that_runs_and_finds_its_model_trained(searched):
    _, summary = searched
    path = Path(summary["report"]).with_name("best.yaml")
    from flows.har import har

    again = har(str(path), ["train.models=[alstm]"])
    assert again["stages"]["train"]["cache"] == "hit"
    assert again["models"]["alstm"]["video_accuracy"] == summary["models"]["alstm_tuned"]["video_accuracy"]


def test_more_trials_go_on_from_those_there_are(searched):
    pipeline, _ = searched
    (study,) = (pipeline.workspace / "sweeps").iterdir()
    pipeline.run(*SEARCH, "sweep.trials=4", until="sweep")
    assert [path.name for path in (pipeline.workspace / "sweeps").iterdir()] == [study.name]
    best = [json.loads(path.read_text()) for path in (pipeline.workspace / "artifacts" / "sweep").glob("*/best.json")]
    assert len(best) == 2
