"""Find example videos and heatmap parameters for a model in the workspace's artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline_lib.artifacts import Artifact, Store, layout
from pipeline_lib.artifacts.shipping import LocalFiles
from pipeline_lib.artifacts.tables import video_paths
from pipeline_lib.heatmaps.selection import select_clips
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.provenance import artifacts_of, training_of

NUM_RIGHT, NUM_WRONG = 7, 3


@dataclass(frozen=True)
class Example:
    """A subsampled test video."""

    video: Path
    label: str
    """The true class."""
    is_right: bool
    """Whether the model's prediction was correct in evaluation."""


def find_examples(store: Store, checkpoint_sha256: str) -> list[Example]:
    """Return test videos of the model with this checkpoint, wrong ones first, selected like the clips of heatmaps.

    The list is empty if the workspace has no training or evaluation of the model, or no longer has its videos.
    """
    trained = training_of(store, checkpoint_sha256)
    evaluated = _evaluation(store, trained) if trained else None
    if not trained or not evaluated:
        return []
    paths = video_paths(store.checkout(shard, layout.VIDEOS) for shard in _shards(store, trained))
    videos = pd.read_parquet(store.file(evaluated, layout.VIDEOS))
    videos = videos[[name in paths for name in videos["video"]]]
    chosen = select_clips(videos.assign(clip=videos["video"]), HeatmapsParams(successes=NUM_RIGHT, failures=NUM_WRONG))
    rows = chosen.sort_values("correct", kind="stable").to_dict("records")
    files = LocalFiles(paths, store)
    examples = [Example(files[row["video"]], row["class_name"], bool(row["correct"])) for row in rows]
    return [example for example in examples if example.video.is_file()]


def find_drawing(store: Store, checkpoint_sha256: str) -> HeatmapsParams:
    """Return the heatmap parameters of the run that trained this checkpoint, or the defaults if they are unknown."""
    trained = training_of(store, checkpoint_sha256)
    evaluated = _evaluation(store, trained) if trained else None
    if not evaluated:
        return HeatmapsParams()
    heatmaps = [one for one in artifacts_of(store, "heatmaps") if one.manifest.inputs.get("evaluated") == evaluated.content_key]
    newest = max(heatmaps, key=lambda one: one.manifest.created, default=None)
    params = newest.manifest.params if newest else {}
    return HeatmapsParams(**{name: params[name] for name in HeatmapsParams.model_fields if name in params})


def _evaluation(store: Store, trained: Artifact) -> Artifact | None:
    """Return the newest evaluation of a trained model."""
    found = [one for one in artifacts_of(store, "evaluate") if one.manifest.inputs.get("trained") == trained.content_key]
    return max(found, key=lambda one: one.manifest.created, default=None)


def _shards(store: Store, trained: Artifact) -> Iterator[Artifact]:
    """Yield the subsample artifacts that the model was trained and tested on."""
    features = {key for name, key in trained.manifest.inputs.items() if name.startswith("features ")}
    shards = {one.manifest.inputs["shard"] for one in artifacts_of(store, "features") if one.content_key in features}
    return (one for one in artifacts_of(store, "subsample") if one.content_key in shards)
