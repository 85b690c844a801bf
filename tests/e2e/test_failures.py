"""One model that fails does not spoil the others: they are finished, logged and reported, and the run says what failed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from flows.execution import FailedWorkError

MODELS = ("alstm", "conv_alstm", "mean_pool")


def break_work(monkeypatch, function, model, error):
    """Let a function of the library fail for one model; what it is of stands in its arguments, or beside them."""
    module, name = function.rsplit(".", 1)
    package = importlib.import_module(module)
    original = getattr(package, name)

    def broken(*args, **kwargs):
        if model is None or any(getattr(arg, "model", None) == model or _is_of(arg, model) for arg in args):
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(package, name, broken)


def _is_of(arg, model):
    """Return whether a path is the model's checkpoint or evaluation, which name it."""
    from pipeline_lib.training.checkpoints import read_metadata

    return isinstance(arg, Path) and arg.name == "checkpoint.safetensors" and read_metadata(arg).model == model


def run_and_fail(pipeline, *settings):
    """Run, and return the failures and the MLflow runs of the parent and of each model."""
    from mlflow import MlflowClient

    with pytest.raises(FailedWorkError) as error:
        pipeline.run(*settings, refresh=("train", "evaluate", "heatmaps"))
    return str(error.value).splitlines(), *newest_runs(MlflowClient(f"sqlite:///{pipeline.workspace}/mlflow/mlflow.db"))


def newest_runs(client):
    experiment = client.get_experiment_by_name("har").experiment_id
    parent = client.search_runs([experiment], "attributes.run_name != '' AND tags.`prefect.flow_run_id` != ''")
    (parent, *_) = [run for run in parent if "mlflow.parentRunId" not in run.data.tags]
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    return client, parent, {run.data.tags["model"]: run for run in children}


def statuses(children):
    return {model: run.info.status for model, run in children.items()}


def folders(client, run):
    return {item.path for item in client.list_artifacts(run.info.run_id)}


def report_of(client, parent):
    """Return the text of the page that a run logged."""
    folder = client.download_artifacts(parent.info.run_id, "report")
    return (Path(folder) / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("function", "kind"),
    [("pipeline_lib.train.train_model", "train"), ("pipeline_lib.evaluate.evaluate_model", "evaluate")],
)
def test_the_other_models_are_finished_logged_and_reported(copy_of_finished, monkeypatch, function, kind):
    break_work(monkeypatch, function, "conv_alstm", RuntimeError("it broke\nhere"))
    failures, client, parent, children = run_and_fail(copy_of_finished())
    assert failures == [f"{kind} conv_alstm failed: RuntimeError: it broke"]
    assert parent.info.status == "FAILED"
    assert statuses(children) == {"alstm": "FINISHED", "conv_alstm": "FAILED", "mean_pool": "FINISHED"}
    assert {"checkpoint", "evaluation", "heatmaps"} <= folders(client, children["alstm"])
    assert {"checkpoint", "evaluation"} <= folders(client, children["mean_pool"])
    assert ("checkpoint" in folders(client, children["conv_alstm"])) == (kind == "evaluate")
    page = report_of(client, parent)
    assert failures[0] in page
    assert "registered_version" in parent.data.tags


def test_a_model_whose_heatmaps_fail_and_controls_that_fail_leave_the_rest(copy_of_finished, monkeypatch):
    pipeline = copy_of_finished()
    break_work(monkeypatch, "pipeline_lib.evaluate.evaluate_controls", None, ValueError("no control"))
    from pipeline_lib import heatmaps

    drawn, outcomes = heatmaps.render_heatmaps, iter([OSError("no space")])

    def break_the_first(*args, **kwargs):
        if error := next(outcomes, None):
            raise error
        return drawn(*args, **kwargs)

    monkeypatch.setattr(heatmaps, "render_heatmaps", break_the_first)
    failures, client, parent, children = run_and_fail(pipeline)
    assert len(failures) == 2
    assert "controls fold 1 failed: ValueError: no control" in failures
    assert sorted(statuses(children).values()) == ["FAILED", "FINISHED", "FINISHED"]
    assert all({"checkpoint", "evaluation"} <= folders(client, child) for child in children.values())
    assert "no control" in report_of(client, parent)


def test_models_that_are_done_stay_finished_when_a_later_stage_fails(copy_of_finished, monkeypatch):
    from mlflow import MlflowClient

    pipeline = copy_of_finished()
    break_work(monkeypatch, "pipeline_lib.report.write_report", None, RuntimeError("no page"))
    with pytest.raises(RuntimeError, match="no page"):
        pipeline.run()
    _, parent, children = newest_runs(MlflowClient(f"sqlite:///{pipeline.workspace}/mlflow/mlflow.db"))
    assert parent.info.status == "FAILED"
    assert statuses(children) == dict.fromkeys(MODELS, "FINISHED")


def test_what_nobody_could_train_with_ends_the_run_before_any_training(copy_of_finished, monkeypatch):
    pipeline = copy_of_finished()
    break_work(monkeypatch, "pipeline_lib.train.train_model", None, AssertionError("training began"))
    for class_name in ("wave", "jump"):
        split_file = pipeline.collection / "splits" / f"{class_name}_test_split1.txt"
        split_file.write_text(split_file.read_text().replace(" 2 ", " 0 "))
    with pytest.raises(ValueError, match="test split"):
        pipeline.run(until="train")


def test_several_failures_are_a_line_each(copy_of_finished, monkeypatch):
    break_work(monkeypatch, "pipeline_lib.train.train_model", None, RuntimeError("all broke"))
    failures, _, parent, children = run_and_fail(copy_of_finished())
    assert sorted(failures) == [f"train {model} failed: RuntimeError: all broke" for model in MODELS]
    assert statuses(children) == dict.fromkeys(MODELS, "FAILED")
    assert parent.info.status == "FAILED"
