"""Models on streams of frames, of optical flow and of clips, in one run and on raw videos."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.promote import promote
from pipeline_lib.artifacts.workspace import Workspace
from tasks.mlflow import tracking
from tasks.mlflow.loading import DEFAULT, open_predictor
from tests.e2e.conftest import TINY, Pipeline

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SMALL = {"backbone": "vgg_small", "weights": "random", "image_size": 32, "grid": 2}
CLIP = {"input": "clip", "backbone": "r3d_18", "weights": "random", "image_size": 32, "grid": 2}
"""Three steps a clip of 20 frames."""
STREAMS = {"rgb": SMALL, "flow": {**SMALL, "input": "flow"}, "motion": {**SMALL, "input": "flow", "stack": 3}, "clip": CLIP}
MODELS = ["mean_pool", "alstm@flow", "conv_alstm@motion", "attention_pool@clip"]
PARAMS: dict[str, Any] = {
    "finetune": {"enabled": True, "streams": ["motion"], "epochs": 1},
    "train": TINY["train"] | {"models": MODELS},
    "evaluate": TINY["evaluate"] | {"fusions": {"two_stream": {"members": ["mean_pool", "alstm@flow"], "method": "mean"}}},
}


@pytest.fixture(scope="module")
def run_of_streams(tmp_path_factory, tiny_collection, prefect_server) -> tuple[Pipeline, dict[str, Any]]:
    """Return a pipeline that ran first with two streams and then with all, and the summary of the second run."""
    folder = tmp_path_factory.mktemp("streams")
    first = {"features": {"streams": {name: STREAMS[name] for name in ("rgb", "flow")}}}
    first |= {"train": TINY["train"] | {"models": MODELS[:2]}}
    Pipeline(folder, tiny_collection, first).run(until="train")
    pipeline = Pipeline(folder, tiny_collection, PARAMS | {"features": {"streams": STREAMS}})
    return pipeline, pipeline.run()


def test_a_further_stream_computes_none_again(run_of_streams):
    pipeline, summary = run_of_streams
    shards = len(list((pipeline.workspace / "artifacts" / "subsample").iterdir()))
    assert len(list((pipeline.workspace / "artifacts" / "features").iterdir())) == shards * len(STREAMS)
    assert len(list((pipeline.workspace / "artifacts" / "train").iterdir())) == len(MODELS)
    assert summary["stages"]["features"]["cache"] == summary["stages"]["train"]["cache"] == "partial"


def test_every_model_and_fusion_is_scored_under_its_name(run_of_streams):
    _, summary = run_of_streams
    assert list(summary["models"]) == [*MODELS, "two_stream"]
    assert len({row["num_frames"] for row in summary["models"].values()}) == 1  # steps vote for their frames


def test_raw_videos_give_what_evaluation_found_on_every_stream(run_of_streams):
    pipeline, summary = run_of_streams
    tracking.open_tracking(pipeline.workspace)
    predictor = open_predictor(
        summary["mlflow"]["parent_run_id"], Workspace(folder=pipeline.workspace), siblings=True
    ).predictor
    assert {*MODELS, "two_stream"} == set(predictor.models)
    evaluations = [path.parent for path in pipeline.workspace.glob("artifacts/evaluate/*/metrics.json")]
    for model in MODELS:
        row = summary["models"][model]
        folder = next(path for path in evaluations if json.loads((path / "metrics.json").read_text()).items() <= row.items())
        videos = pd.read_parquet(folder / "videos.parquet").set_index("video")
        for video in videos.index[:2]:
            found = predictor.predict(pipeline.collection / "videos" / video).models[model]
            assert found.label == videos.loc[video, "predicted"]
            np.testing.assert_allclose(found.confidence, videos.loc[video, "confidence"], atol=1e-4)


def test_a_fusion_is_predicted_with_and_can_be_promoted(run_of_streams):
    pipeline, summary = run_of_streams
    tracking.open_tracking(pipeline.workspace)
    run_id = summary["models"]["two_stream"]["mlflow_run_id"]
    opened = open_predictor(run_id, Workspace(folder=pipeline.workspace))
    video = next((pipeline.collection / "videos" / "wave").iterdir())
    models = opened.predictor.predict(video).models
    assert opened.model == "two_stream"
    members = [models[name].probability_TC for name in ("mean_pool", "alstm@flow")]
    np.testing.assert_allclose(models["two_stream"].probability_TC, sum(members) / 2, atol=1e-6)
    promote(run_id, pipeline.workspace)
    champion = open_predictor(DEFAULT, Workspace(folder=pipeline.workspace))
    assert champion.model == "two_stream"
    np.testing.assert_array_equal(
        champion.predictor.predict(video).models["two_stream"].probability_TC, models["two_stream"].probability_TC
    )
