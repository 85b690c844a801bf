"""Names of the files inside artifacts that two stages share, each written once."""

from __future__ import annotations

from pathlib import Path

COLLECTION = "collection.parquet"
"""fetch: a row a video."""
BOXES = "boxes.csv"
GROUPS = "groups.csv"
VIDEOS = "videos.parquet"
"""A row a video: of a subsample shard, of the chunk stage, of an evaluation, of the controls."""
CLIPS = "clips.parquet"
"""chunk: a row a clip."""
BACKBONE = "backbone.safetensors"
"""finetune: the tuned weights; also beside each registered model."""
FEATURES = "features.h5"
BEST_TRIAL = "best.json"
IMPORTANCE = "importance.json"
CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.json"
"""train and finetune: a row an epoch."""
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
"""evaluate: a row a clip."""
ATTENTION = "attention.h5"
PER_CLASS = "per_class.csv"
MAPS = "maps.json"
MAPS_TABLE = "maps.parquet"
CONTROLS = "controls.json"
RESULTS = "results.json"
HEATMAPS = "heatmaps.json"
PAGE = "index.html"
BEST_PARAMS = "best.yaml"


def subsampled_path(shard: Path, video: str) -> Path:
    """Return where a subsample shard keeps a video."""
    return shard / "videos" / f"{video}.mp4"
