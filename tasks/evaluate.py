"""evaluate: score each model and fusion on the test split, score the controls, and compare them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.compute.engine import Needs, run_at
from pipeline_lib.compute.planning import CONTROLS_GPU_SHARE, SideBySide, uses_gpu
from pipeline_lib.params import EvaluateParams, FusionParams
from tasks.features import FeaturesOfModel, feature_files, feature_inputs, needs_of_model
from tasks.stage import Context, Ref, stage

if TYPE_CHECKING:
    import pandas as pd

VERSION = "evaluate-8"
FUSION_VERSION = "fusion-3"
CONTROLS_VERSION = "controls-3"
RESULTS_VERSION = "results-6"

RunKey = tuple[str, int, int]
"""Name of a model or a fusion in the run, its fold and its seed."""


def recipe(
    context: Context,
    training_run: str,
    trained: Ref,
    clips: Ref,
    features: FeaturesOfModel,
    shards: Sequence[Ref],
    collection: Ref,
    params: EvaluateParams,
    fps: float,
    side_by_side: SideBySide,
) -> Recipe:
    """Return what scores depend on: the checkpoint, the clips, their features, the videos and the collection's boxes."""
    inputs = {"trained": trained.content_key, "clips": clips.content_key, "collection": collection.content_key}
    inputs |= feature_inputs(features) | {f"shard {n}": ref.content_key for n, ref in enumerate(shards)}
    return Recipe("evaluate", VERSION, params.recipe() | {"fps": fps}, inputs)


@stage(recipe, task_run_name="evaluate {training_run}")
def evaluate(
    directory: Path,
    context: Context,
    training_run: str,
    trained: Ref,
    clips: Ref,
    features: FeaturesOfModel,
    shards: Sequence[Ref],
    collection: Ref,
    params: EvaluateParams,
    fps: float,
    side_by_side: SideBySide,
) -> Mapping[str, Any]:
    """Write a model's test metrics, predictions, confusion matrix, attention maps and their measures."""
    from pipeline_lib.artifacts.tables import read_clips, video_paths
    from pipeline_lib.evaluate import evaluate_model

    files = feature_files(context, features)
    boxes = _read_boxes(context, collection)
    shards_with_tables = () if boxes is None else (shard.checkout(context, layout.VIDEOS) for shard in shards)
    return run_at(
        evaluate_model,
        trained.directory(context) / layout.CHECKPOINT,
        read_clips(clips.checkout(context, layout.CLIPS)),
        files,
        directory,
        params,
        fps=fps,
        boxes=boxes,
        video_path=context.files(video_paths(shards_with_tables)).__getitem__,
        needs=needs_of_model(context, params.device, "evaluate.device", features, side_by_side),
    )


def _read_boxes(context: Context, collection: Ref) -> pd.DataFrame | None:
    """Return the collection's table of actor boxes; None if it has none."""
    import pandas as pd

    path = collection.file(context, layout.BOXES)
    return pd.read_csv(path) if path.is_file() else None


def fusion_recipe(
    context: Context,
    training_run: str,
    members: Sequence[Ref],
    clips: Ref,
    collection: Ref,
    params: FusionParams,
    fps: float,
) -> Recipe:
    """Return what a fusion's scores depend on: its members' evaluations, the clips and the collection's boxes."""
    inputs = {f"member {n}": ref.content_key for n, ref in enumerate(members)}
    inputs |= {"clips": clips.content_key, "collection": collection.content_key}
    return Recipe("evaluate", FUSION_VERSION, params.recipe() | {"fps": fps}, inputs)


@stage(fusion_recipe, task_run_name="evaluate {training_run}")
def fusion(
    directory: Path,
    context: Context,
    training_run: str,
    members: Sequence[Ref],
    clips: Ref,
    collection: Ref,
    params: FusionParams,
    fps: float,
) -> Mapping[str, Any]:
    """Fuse the scores of evaluated models; write what `evaluate` writes, and how far the members' errors overlap."""
    from pipeline_lib.artifacts.tables import read_clips
    from pipeline_lib.evaluate import evaluate_fusion

    return run_at(
        evaluate_fusion,
        [member.directory(context) for member in members],
        read_clips(clips.checkout(context, layout.CLIPS)),
        directory,
        params,
        fps=fps,
        boxes=_read_boxes(context, collection),
        needs=Needs(cpus=1),
    )


def controls_recipe(
    context: Context,
    fold: int,
    clips: Ref,
    features: FeaturesOfModel,
    shards: Sequence[Ref],
    params: EvaluateParams,
    fps: float,
) -> Recipe:
    """Return what the controls depend on: the clips, the features and the metadata of the video files."""
    inputs = {"clips": clips.content_key} | feature_inputs(features)
    inputs |= {f"shard {n}": ref.content_key for n, ref in enumerate(shards)}
    return Recipe("evaluate", CONTROLS_VERSION, params.recipe() | {"fps": fps}, inputs)


@stage(controls_recipe, task_run_name="evaluate controls, fold {fold}")
def controls(
    directory: Path,
    context: Context,
    fold: int,
    clips: Ref,
    features: FeaturesOfModel,
    shards: Sequence[Ref],
    params: EvaluateParams,
    fps: float,
) -> Mapping[str, Any]:
    """Score the controls of a fold: logistic regression, linear SVM, permuted labels and file metadata."""
    from pipeline_lib.artifacts.tables import read_clips, read_videos
    from pipeline_lib.evaluate import evaluate_controls

    on_gpu = uses_gpu(params.device, key="evaluate.device")
    return run_at(
        evaluate_controls,
        read_clips(clips.checkout(context, layout.CLIPS)),
        feature_files(context, features),
        read_videos(shard.checkout(context, layout.VIDEOS) for shard in shards),
        directory,
        params,
        fps=fps,
        needs=Needs(cpus=1, gpus=CONTROLS_GPU_SHARE if on_gpu else 0),
    )


def results_recipe(
    context: Context,
    training_runs: Sequence[RunKey],
    evaluated: Sequence[Ref],
    folds: Sequence[int],
    controls: Sequence[Ref],
    params: EvaluateParams,
) -> Recipe:
    """Return what the comparison depends on: every evaluation with its model, fold and seed, and the controls."""
    inputs = {f"{key}": ref.content_key for key, ref in zip(training_runs, evaluated, strict=True)}
    inputs |= {f"controls {fold}": ref.content_key for fold, ref in zip(folds, controls, strict=True)}
    return Recipe(
        "evaluate", RESULTS_VERSION, params.recipe() | {"training_runs": [list(key) for key in training_runs]}, inputs
    )


@stage(results_recipe, task_run_name="evaluate results")
def results(
    directory: Path,
    context: Context,
    training_runs: Sequence[RunKey],
    evaluated: Sequence[Ref],
    folds: Sequence[int],
    controls: Sequence[Ref],
    params: EvaluateParams,
) -> Mapping[str, Any]:
    """Aggregate models, fusions and controls over folds and seeds, and test every two models against each other."""
    from pipeline_lib.evaluate import read_controls, read_training_run, write_results

    models = [read_training_run(ref.checkout(context), *key) for key, ref in zip(training_runs, evaluated, strict=True)]
    references = [read_controls(ref.checkout(context), fold) for fold, ref in zip(folds, controls, strict=True)]
    return write_results(directory, models, references, params)
