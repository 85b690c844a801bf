"""What a run leaves in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def client(finished):
    from mlflow import MlflowClient

    return MlflowClient(finished[1]["mlflow"]["tracking_uri"])


@pytest.fixture
def parent(finished, client):
    return client.get_run(finished[1]["mlflow"]["parent_run_id"])


@pytest.fixture
def children(finished, client):
    return {model: client.get_run(row["mlflow_run_id"]) for model, row in finished[1]["models"].items()}


def artifacts(client, run, folder=""):
    return {item.path for item in client.list_artifacts(run.info.run_id, folder)}


def test_the_parent_tells_parameters_stages_and_data(client, parent):
    assert parent.info.status == "FINISHED"
    assert parent.data.params["chunk.frames"] == "20"
    assert parent.data.tags["cache.features"] == "miss"
    assert parent.data.metrics["subsample/videos"] == 16
    assert {item.dataset.name for item in parent.inputs.dataset_inputs} == {"clips-train", "clips-val", "clips-test"}
    stages = ("fetch", "subsample", "chunk", "features", "train", "evaluate", "heatmaps", "report")
    assert artifacts(client, parent, "manifests") == {f"manifests/{stage}.json" for stage in stages}
    assert {"report/index.html"} <= artifacts(client, parent, "report")


def test_each_model_is_a_child_with_the_same_names_of_metrics_and_parameters(parent, children):
    assert set(children) == {"alstm", "conv_alstm", "mean_pool"}
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
    alstm, conv_alstm = children["alstm"].data, children["conv_alstm"].data
    assert alstm.metrics.keys() == conv_alstm.metrics.keys()
    assert {"train/loss", "val/loss", "val/clip_accuracy", "test/clip_accuracy"} <= alstm.metrics.keys()
    assert alstm.params.keys() == conv_alstm.params.keys()
    different = {key for key in alstm.params if alstm.params[key] != conv_alstm.params[key]}
    of_one_alone = {"train.scorer", "train.attention_penalty", "train.rescale_glimpse", "train.head_channels"}
    assert different == {"train.model", "train.units"} | of_one_alone
    assert alstm.params["chunk.fold"] == "1"
    assert (alstm.tags["fold"], alstm.tags["seed"]) == ("1", "0")


def test_results_are_complete_in_the_parent_and_in_the_report(finished, client, parent):
    names = {"results/results.json", "results/results.csv"}
    assert names <= artifacts(client, parent, "results")
    assert {"controls/fold 1/controls.json"} <= artifacts(client, parent, "controls/fold 1")
    metrics = parent.data.metrics
    wanted = {"alstm/video_accuracy", "mean_pool/macro_f1", "logistic_regression/video_accuracy"}
    assert {*wanted, "controls/permuted_labels", "controls/metadata"} <= metrics.keys()
    results = finished[1]["results"]
    models = ["alstm", "conv_alstm", "mean_pool", "logistic_regression"]
    assert [row["model"] for row in results["models"]] == models
    assert len(results["pairs"]) == 6
    for model in models[:3]:
        low, high = finished[1]["models"][model]["intervals"]["video_accuracy"]
        assert low <= finished[1]["models"][model]["video_accuracy"] <= high
    info = parent.info
    address = f"#/experiments/{info.experiment_id}/runs/{info.run_id}/artifacts/report/index.html"
    assert parent.data.tags["mlflow.note.content"] == f"[Report]({address})"
    assert "report/index.html" in artifacts(client, parent, "report")
    page = Path(finished[1]["report"]).read_text(encoding="utf-8")
    assert all(text in page for text in ("logistic regression", "permuted labels", "file metadata", "Holm-adjusted p"))


def test_a_test_part_metric_is_its_interval_too(children):
    metrics = children["alstm"].data.metrics
    assert metrics["test/video_accuracy_low"] <= metrics["test/video_accuracy"] <= metrics["test/video_accuracy_high"]


def test_attention_is_measured_in_each_child_that_has_any_and_compared_in_the_parent(finished, children, parent):
    for model in ("alstm", "conv_alstm"):
        metrics = children[model].data.metrics
        for name in ("entropy", "centre_bias", "drift", "deletion", "insertion"):
            low, value, high = (metrics[f"test/attention_{name}{end}"] for end in ("_low", "", "_high"))
            assert low <= value <= high, name
        assert not any("pointing" in name for name in metrics)  # there are no boxes
    assert not any("attention" in name for name in children["mean_pool"].data.metrics)
    claims = {claim["measure"]: claim for claim in finished[1]["results"]["attention_claims"]}
    assert list(claims) == ["deletion", "insertion"]
    metrics = parent.data.metrics
    for name, claim in claims.items():
        logged = [metrics[f"attention_claims/{name}{end}"] for end in ("_low", "", "_high")]
        assert logged == pytest.approx([claim["interval"][0], claim["difference"], claim["interval"][1]])


def test_every_epoch_is_a_step_also_of_a_model_answered_from_artifacts(finished, client, children):
    pipeline, _ = finished
    again = pipeline.run()
    for model, child in children.items():
        first = client.get_metric_history(child.info.run_id, "train/loss")
        second_id = again["models"][model]["mlflow_run_id"]
        second = client.get_metric_history(second_id, "train/loss")
        assert child.data.tags["cache.train"] == "miss"
        assert client.get_run(second_id).data.tags["cache.train"] == "hit"
        assert [metric.step for metric in first] == [1, 2]
        assert [(metric.step, metric.value) for metric in first] == [(metric.step, metric.value) for metric in second]


def test_scores_pictures_and_heatmaps_are_logged(finished, client, children):
    for model, child in children.items():
        row = finished[1]["models"][model]
        assert child.data.metrics["test/clip_accuracy"] == pytest.approx(row["clip_accuracy"])
        assert {"evaluation/confusion.png", "evaluation/predictions.parquet"} <= artifacts(client, child, "evaluation")
        heatmaps = artifacts(client, child, "heatmaps")
        attends = model != "mean_pool"
        assert any(path.endswith(".mp4") for path in heatmaps) == attends
        assert any(path.endswith(".gif") for path in heatmaps) == attends


def test_the_best_model_is_registered_once_and_the_runs_point_at_it(finished, client, parent):
    before = client.search_model_versions("name = 'har'")
    (version,) = [found for found in before if str(found.version) == parent.data.tags["registered_version"]]
    counts = {model: client.get_run(row["mlflow_run_id"]).data for model, row in finished[1]["models"].items()}
    best = max(float(data.tags["val_accuracy"]) for data in counts.values())
    assert float(version.tags["val_accuracy"]) == best
    assert version.run_id in {row["mlflow_run_id"] for row in finished[1]["models"].values()}
    again = finished[0].run()
    assert client.get_run(again["mlflow"]["parent_run_id"]).data.tags["registered_version"] == str(version.version)
    assert len(client.search_model_versions("name = 'har'")) == len(before)


def test_runs_of_two_workspaces_in_one_process_keep_to_their_own_store(finished, pipeline):
    summary = pipeline.run(until="fetch")
    assert summary["mlflow"]["tracking_uri"] == f"sqlite:///{pipeline.workspace}/mlflow/mlflow.db"
    assert finished[0].run(until="fetch")["mlflow"]["tracking_uri"] == finished[1]["mlflow"]["tracking_uri"]


def test_the_summary_is_json_with_the_names_of_the_contract(finished):
    _, summary = finished
    summary = json.loads(json.dumps(summary))
    assert {"dataset", "stages", "models", "mlflow", "report"} <= summary.keys()
    assert {"classes", "videos", "clips", "quarantined"} <= summary["dataset"].keys()
    assert {"train", "val", "test"} <= summary["dataset"]["clips"].keys()
    for row in summary["models"].values():
        assert 0 <= row["clip_accuracy"] <= 1
        assert {"frame_accuracy", "clip_accuracy", "video_accuracy", "mlflow_run_id", "checkpoint"} <= row.keys()
