"""The model that MLflow serves; run by MLflow when it loads it, never imported by the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipeline_lib.models.checkpoints import load_checkpoint


class ServedModel(PythonModel):
    """features (N,T,K,K,D) and valid_frames (N) in; logits (N,T,C) and attention (N,T,K,K) out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint that was logged with the model."""
        self._model, self.metadata = load_checkpoint(Path(context.artifacts["checkpoint"]))
        self._model.eval()

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the logits and attention of every frame.

        `model_input` is a dictionary of arrays. MLflow reads its type hint as a schema and knows no such type; an array's is
        the one that it takes for "see the signature".
        """
        features = torch.from_numpy(np.ascontiguousarray(model_input["features"]))
        valid_frames = torch.from_numpy(np.ascontiguousarray(model_input["valid_frames"]))
        with torch.inference_mode():
            logits, attention = self._model(features, valid_frames)
        return {"logits": logits.numpy(), "attention": attention.numpy()}


mlflow.models.set_model(ServedModel())
