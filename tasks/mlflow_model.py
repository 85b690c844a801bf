"""A trained model as MLflow keeps it: loads in any process, without pickle, and gives logits and attention."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors", "pydantic", "pyyaml")
SERVED_MODEL = Path(__file__).with_name("served_model.py")
"""MLflow runs this file to build the model ("models from code"); with it go the checkpoint and `pipeline_lib`."""


def log_model(run_id: str, checkpoint: Path) -> str:
    """Log a checkpoint as the run's model and return its address.

    Its input is `features` (N, T, K, K, D) float32 and `valid_frames` (N) int64; its output `logits` (N, T, C) and
    `attention` (N, T, K, K).
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    import pipeline_lib
    from pipeline_lib.models.checkpoints import load_checkpoint

    _, model = load_checkpoint(checkpoint)
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype("float32"), (-1, -1, model.grid, model.grid, model.channels), "features"),
        TensorSpec(np.dtype("int64"), (-1,), "valid_frames"),
    ]
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name=model.model,
            python_model=str(SERVED_MODEL),
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(Path(pipeline_lib.__file__).parent)],
            signature=ModelSignature(inputs=Schema(inputs)),
            # Named here, or MLflow would ask pip, which needs a network.
            pip_requirements=[f"{requirement}=={version(requirement)}" for requirement in REQUIREMENTS],
        )
    return str(info.model_uri)
