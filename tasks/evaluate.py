"""evaluate: one model on the test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Recipe
from pipeline_lib.params import EvaluateParams
from tasks.stage import Context, Ref, stage

VERSION = "evaluate-1"


def recipe(
    context: Context,
    model: str,
    trained: Ref,
    clips: Ref,
    features: Sequence[Ref],
    collection: Ref,
    params: EvaluateParams,
    fps: float,
) -> Recipe:
    """Scores depend on the checkpoint, the test clips' features, and the boxes in the collection."""
    inputs = {"trained": trained.content_key, "clips": clips.content_key, "collection": collection.content_key}
    inputs |= {f"features {n}": shard.content_key for n, shard in enumerate(features)}
    return Recipe("evaluate", VERSION, params.recipe() | {"fps": fps}, inputs)


@stage(recipe, worker="device", task_run_name="evaluate {model}")
def evaluate(
    directory: Path,
    context: Context,
    model: str,
    trained: Ref,
    clips: Ref,
    features: Sequence[Ref],
    collection: Ref,
    params: EvaluateParams,
    fps: float,
) -> Mapping[str, Any]:
    """Write metrics, predictions, attention maps and the confusion matrix."""
    import pandas as pd

    from pipeline_lib.evaluate import evaluate_model
    from pipeline_lib.tables import read_clips

    boxes = collection.directory(context) / "boxes.csv"
    return evaluate_model(
        trained.directory(context) / "checkpoint.safetensors",
        read_clips(clips.directory(context)),
        [shard.directory(context) / "features.h5" for shard in features],
        directory,
        params,
        fps=fps,
        boxes=pd.read_csv(boxes) if boxes.is_file() else None,
    )
