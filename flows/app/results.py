"""A prediction as JSON types, for the page and for download.

Shape suffixes: T frames, C classes, N chosen classes, P points of a chart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.prediction import ModelPrediction, Prediction
from pipeline_lib.predict.results import DIGITS, describe
from pipeline_lib.report.player import ClipModel, describe_clip, player_style

POINTS = 600
"""Maximum points of a chart; in longer videos each is a mean over frames."""


def title_of(model: str) -> str:
    """Return a model's name with spaces for underscores."""
    return model.replace("_", " ")


def page_result(prediction: Prediction, video: str, label: str | None, drawing: HeatmapsParams) -> dict[str, Any]:
    """Return the clip and style of the player, and each model's prediction and chart.

    Args:
        prediction: prediction of the video by all models.
        video: URL of the resampled video.
        label: true class, if known.
        drawing: colour map and scale of the attention.
    """
    grid = max(
        (result.attention_TKK.shape[1] for result in prediction.models.values() if result.attention_TKK is not None), default=1
    )
    models = [
        ClipModel(
            title_of(name),
            result.attention_TKK,
            result.frame_labels,
            result.frame_confidence,
            result.label,
            result.confidence,
        )
        for name, result in prediction.models.items()
    ]
    size = prediction.video.width, prediction.video.height
    clip = describe_clip("", label=label, video=video, still=None, size=size, fps=prediction.fps, grid=grid, models=models)
    return {
        "clip": clip,
        "style": player_style(grid, drawing),
        "seconds": prediction.video.num_frames / prediction.fps,
        "damaged": prediction.video.stderr is not None,
        "models": [_describe_model(name, result, prediction.fps) for name, result in prediction.models.items()],
    }


def _describe_model(name: str, result: ModelPrediction, fps: float) -> dict[str, Any]:
    return {
        "name": title_of(name),
        "label": result.label,
        "confidence": result.confidence,
        "attends": result.attention_TKK is not None,
        "top": result.top,
        "chart": probability_chart(result, fps),
    }


def probability_chart(result: ModelPrediction, fps: float) -> dict[str, Any]:
    """Return the probabilities over time of the top classes of the whole video."""
    chosen_N = [result.classes.index(label) for label, _ in result.top]
    probability_TN = result.probability_TC[:, chosen_N]
    num_frames = len(probability_TN)
    edges_P = np.linspace(0, num_frames, min(num_frames, POINTS) + 1).astype(np.int64)
    frames_P = np.diff(edges_P)
    mean_PN = np.add.reduceat(probability_TN, edges_P[:-1]) / frames_P[:, None]
    seconds_P = (edges_P[:-1] + frames_P / 2) / fps
    return {
        "seconds": [round(value, 3) for value in seconds_P.tolist()],
        "series": [
            {"name": result.classes[index], "values": [round(value, 4) for value in values_P]}
            for index, values_P in zip(chosen_N, mean_PN.T.tolist(), strict=True)
        ],
    }


def file_result(prediction: Prediction, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the download: each model's output as of `har predict`, and all probabilities."""
    models = {}
    for name, result in prediction.models.items():
        probabilities = np.round(result.probability_TC.astype(np.float64), DIGITS).tolist()
        models[name] = describe(prediction, name) | {"classes": list(result.classes), "frame_probabilities": probabilities}
    return {**header, "models": models}
