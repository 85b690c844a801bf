"""Fusions in a run: beside their members in the summary, in MLflow and in the report, and never computed twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Pipeline
from tests.e2e.test_failures import break_work, run_and_fail, statuses

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BOTH = {"members": ["alstm", "mean_pool"], "method": "mean"}
LEARNED = {"members": ["alstm", "mean_pool"], "method": "svm"}


def with_fusions(pipeline: Pipeline, **fusions) -> Pipeline:
    return Pipeline(pipeline.folder, pipeline.collection, {"evaluate": TINY["evaluate"] | {"fusions": fusions}})


@pytest.fixture(scope="module")
def fused(finished):
    """Return the summary without fusions, the summary with fusions, and the number of new evaluations."""
    pipeline, before = finished
    evaluations = pipeline.workspace / "artifacts" / "evaluate"
    num_before = len(list(evaluations.iterdir()))
    summary = with_fusions(pipeline, both=BOTH, learned=LEARNED).run()
    return before, summary, len(list(evaluations.iterdir())) - num_before


def test_a_fusion_recomputes_no_model(fused):
    before, summary, num_new = fused
    assert num_new == 2 + 1  # the fusions and the comparison
    assert summary["stages"]["train"]["cache"] == "hit"
    assert summary["stages"]["evaluate"]["cache"] == "partial"
    assert summary["models"]["alstm"]["video_accuracy"] == before["models"]["alstm"]["video_accuracy"]


def test_a_fusion_stands_beside_its_members_in_the_summary_and_the_report(fused):
    _, summary, _ = fused
    assert list(summary["models"]) == ["alstm", "conv_alstm", "mean_pool", "both", "learned"]
    metrics = summary["models"]["both"]
    assert metrics.keys() == summary["models"]["alstm"].keys()
    assert metrics["num_videos"] == summary["models"]["alstm"]["num_videos"]
    rows = {row["fusion"]: row for row in summary["results"]["fusions"]}
    members = [summary["models"][name]["video_accuracy"] for name in ("alstm", "mean_pool")]
    assert list(rows) == ["both", "learned"]
    assert rows["both"]["oracle_accuracy"] >= max(members)
    assert rows["both"]["difference"] == pytest.approx(metrics["video_accuracy"] - max(members))
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "either right" in page
    assert '{"model":"both"' in page  # its confusion matrix
    assert '"name":"both","attention":"' in page  # its maps in the gallery


def test_a_fusion_has_an_mlflow_run_of_its_own(fused):
    from mlflow import MlflowClient

    _, summary, _ = fused
    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    metrics = summary["models"]["both"]
    child = client.get_run(metrics["mlflow_run_id"])
    assert (child.info.run_name, child.info.status) == ("both", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == summary["mlflow"]["parent_run_id"]
    assert child.data.metrics["test/video_accuracy"] == metrics["video_accuracy"]
    assert child.data.params["fusion.members"] == "['alstm', 'mean_pool']"
    assert {"evaluation", "heatmaps"} <= {item.path for item in client.list_artifacts(child.info.run_id)}


def test_a_fusion_of_a_failed_member_fails_without_a_line_of_its_own(copy_of_finished, monkeypatch):
    break_work(monkeypatch, "pipeline_lib.train.train_model", "conv_alstm", RuntimeError("it broke"))
    without = {"members": ["alstm", "conv_alstm"], "method": "mean"}
    failures, _, _, children = run_and_fail(with_fusions(copy_of_finished(), without=without, both=BOTH))
    assert failures == ["train conv_alstm failed: RuntimeError: it broke"]
    failed = {"conv_alstm", "without"}
    assert statuses(children) == dict.fromkeys(("alstm", "mean_pool", "both"), "FINISHED") | dict.fromkeys(failed, "FAILED")
