"""Fusions in a run: beside their members in the summary, in MLflow and in the report, and never computed twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

FUSIONS = {
    "both": {"members": ["alstm", "mean_pool"], "method": "mean"},
    "learned": {"members": ["alstm", "mean_pool"], "method": "svm"},
}


def test_a_fusion_stands_beside_its_members_and_recomputes_none_of_them(pipeline):
    from mlflow import MlflowClient

    pipeline.params = {"evaluate": {"resamples": 500, "permutations": 3}}
    before = pipeline.run("train.models=[alstm, mean_pool]")
    evaluations = pipeline.workspace / "artifacts" / "evaluate"
    num_before = len(list(evaluations.iterdir()))
    pipeline.params = {"evaluate": {"resamples": 500, "permutations": 3, "fusions": FUSIONS}}
    summary = pipeline.run("train.models=[alstm, mean_pool]")

    # models, controls and training come from the cache; two fusions and one comparison are new
    assert summary["stages"]["train"]["cache"] == "hit"
    assert len(list(evaluations.iterdir())) == num_before + 3
    assert list(summary["models"]) == ["alstm", "mean_pool", "both", "learned"]
    assert summary["models"]["alstm"]["video_accuracy"] == before["models"]["alstm"]["video_accuracy"]
    metrics = summary["models"]["both"]
    assert metrics.keys() == summary["models"]["alstm"].keys()
    assert (metrics["num_videos"], metrics["checkpoint"]) == (summary["models"]["alstm"]["num_videos"], None)

    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    child = client.get_run(metrics["mlflow_run_id"])
    assert (child.info.run_name, child.info.status) == ("both", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == summary["mlflow"]["parent_run_id"]
    assert child.data.metrics["test/video_accuracy"] == metrics["video_accuracy"]
    assert json.loads(child.data.params["fusion.members"].replace("'", '"')) == ["alstm", "mean_pool"]

    rows = {row["fusion"]: row for row in summary["results"]["fusions"]}
    assert rows.keys() == FUSIONS.keys()
    assert rows["both"]["oracle_accuracy"] >= max(summary["models"][name]["video_accuracy"] for name in ("alstm", "mean_pool"))
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "either right" in page
    assert "attention, both" in page or "both" in page
