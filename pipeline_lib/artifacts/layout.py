"""Names of the files in artifacts that more than one stage uses."""

from __future__ import annotations

from pathlib import Path

COLLECTION = "collection.parquet"
"""fetch: one row per video."""
BOXES = "boxes.csv"
GROUPS = "groups.csv"
VIDEOS = "videos.parquet"
"""subsample, chunk, evaluate and its controls: one row per video."""
CLIPS = "clips.parquet"
"""chunk: one row per clip."""
BACKBONE = "backbone.safetensors"
"""finetune: the tuned weights; also part of a model bundle."""
FEATURES = "features.h5"
BEST_TRIAL = "best.json"
IMPORTANCE = "importance.json"
CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.json"
"""train and finetune: one row per epoch."""
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
"""evaluate: one row per clip."""
ATTENTION = "attention.h5"
PROBABILITIES = "probabilities.h5"
"""evaluate: class probabilities of every frame of the val and test clips."""
FUSION = "fusion.json"
"""evaluate: a fusion's members, fitted parameters and overlap of errors."""
PER_CLASS = "per_class.csv"
MAPS = "maps.json"
MAPS_TABLE = "maps.parquet"
TUBES = "tubes.parquet"
"""evaluate: the boxes of a model's attention in the videos that have boxes; one row per frame."""
CONTROLS = "controls.json"
SVM_VIDEOS = "videos_svm.parquet"
"""evaluate: the linear SVM's predictions among the controls, one row per video."""
RESULTS = "results.json"
HEATMAPS = "heatmaps.json"
PAGE = "index.html"
BEST_PARAMS = "best.yaml"


def subsampled_path(shard: Path, video: str) -> Path:
    """Return the path of a video in a subsample shard."""
    return shard / "videos" / f"{video}.mp4"


FEATURE_INPUTS = ("features", "features_2")
"""Names of the features of a model's first and second stream among the inputs of its artifacts; a shard's number follows."""
