"""The model that MLflow serves. MLflow runs this file when it loads the model; the pipeline never imports it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipeline_lib.predict.predictor import Predictor
from pipeline_lib.predict.results import describe
from pipeline_lib.predict.videos import MAX_BYTES, MAX_SECONDS
from pipeline_lib.video.ffmpeg import VideoError


class ServedModel(PythonModel):
    """Predicts video files given as bytes: label, confidence, top 5, and per-frame probabilities and attention."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle that was logged with the model."""
        self._predictor = Predictor.load(Path(context.artifacts["predictor"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return one dictionary a row of the column `video`.

        Raises:
            MlflowException: a video cannot be decoded, or is too large or long; a server answers with status 400.
        """
        return [self._predict(number, content) for number, content in enumerate(model_input["video"])]

    def _predict(self, number: int, content: bytes) -> dict[str, Any]:
        if len(content) > MAX_BYTES:
            raise _refusal(number, f"{len(content):,} bytes, more than the {MAX_BYTES:,} allowed here")
        model = self._predictor.main
        with tempfile.NamedTemporaryFile(prefix="har-") as file:
            file.write(content)
            file.flush()
            try:
                prediction = self._predictor.predict(Path(file.name), max_seconds=MAX_SECONDS)
            except VideoError as error:
                raise _refusal(number, error.reason) from None
        result = prediction.models[model]
        attention = {} if result.attention_TKK is None else {"attention": result.attention_TKK.tolist()}
        frames = {"classes": list(result.classes), "probabilities": result.probability_TC.tolist()}
        return describe(prediction, model) | frames | attention


def _refusal(number: int, reason: str) -> MlflowException:
    return MlflowException(f"video {number}: {reason}", error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(ServedModel())
