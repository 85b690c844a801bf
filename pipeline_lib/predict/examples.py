"""What the workspace's artifacts tell of a model: videos to try it on, right and wrong, and how its attention was drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline_lib.artifacts import Artifact, Store, layout
from pipeline_lib.artifacts.tables import video_paths
from pipeline_lib.heatmaps.selection import select_clips
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.origin import artifacts_of, training_of

NUM_RIGHT, NUM_WRONG = 7, 3


@dataclass(frozen=True)
class Example:
    """A test video, as the models see it."""

    video: Path
    label: str
    """What it shows."""
    is_right: bool
    """Whether evaluation found that the model recognises it."""


def find_examples(store: Store, checkpoint_sha256: str) -> list[Example]:
    """Return test videos of the model with this checkpoint, wrong ones first, by the rule that chooses heatmaps' clips.

    None where the workspace did not train or evaluate the model, or its videos are gone.
    """
    trained = training_of(store, checkpoint_sha256)
    evaluated = _evaluation(store, trained) if trained else None
    if not trained or not evaluated:
        return []
    paths = video_paths(shard.directory for shard in _shards(store, trained))
    videos = pd.read_parquet(evaluated.path(layout.VIDEOS))
    videos = videos[[name in paths and paths[name].is_file() for name in videos["video"]]]
    chosen = select_clips(videos.assign(clip=videos["video"]), HeatmapsParams(successes=NUM_RIGHT, failures=NUM_WRONG))
    rows = chosen.sort_values("correct", kind="stable").to_dict("records")
    return [Example(paths[row["video"]], row["class_name"], bool(row["correct"])) for row in rows]


def find_drawing(store: Store, checkpoint_sha256: str) -> HeatmapsParams:
    """Return how the run of the model with this checkpoint draws attention; the defaults where the workspace does not know."""
    trained = training_of(store, checkpoint_sha256)
    evaluated = _evaluation(store, trained) if trained else None
    if not evaluated:
        return HeatmapsParams()
    drawn = [one for one in artifacts_of(store, "heatmaps") if one.manifest.inputs.get("evaluated") == evaluated.content_key]
    newest = max(drawn, key=lambda one: one.manifest.created, default=None)
    params = newest.manifest.params if newest else {}
    return HeatmapsParams(**{name: params[name] for name in HeatmapsParams.model_fields if name in params})


def _evaluation(store: Store, trained: Artifact) -> Artifact | None:
    """Return the newest evaluation of a trained model."""
    found = [one for one in artifacts_of(store, "evaluate") if one.manifest.inputs.get("trained") == trained.content_key]
    return max(found, key=lambda one: one.manifest.created, default=None)


def _shards(store: Store, trained: Artifact) -> Iterator[Artifact]:
    """Yield the artifacts with the videos that the model was trained and tested on."""
    features = {key for name, key in trained.manifest.inputs.items() if name.startswith("features ")}
    shards = {one.manifest.inputs["shard"] for one in artifacts_of(store, "features") if one.content_key in features}
    return (one for one in artifacts_of(store, "subsample") if one.content_key in shards)
