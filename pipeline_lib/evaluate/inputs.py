"""Inputs of the controls: one average feature vector per video, or the metadata of its file."""

# V videos, N clips, T steps of a clip, D channels (or columns)

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import torch

from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.steps import valid_steps
from pipeline_lib.training.batches import ClipLoader

BATCH_CLIPS = 32
"""Clips per batch while averaging; bounds memory."""

UNKNOWN = -1.0
"""Placeholder for metadata that the file does not declare; not a valid value of any column."""


def average_features(clips: pd.DataFrame, reader: FeatureReader, device: torch.device) -> np.ndarray:
    """Return features_VD averaged over each video's valid steps and all cells, in the order of the videos' first clips.

    Raises:
        UserError: a clip is in none of the feature files.
    """
    video_N, videos = pd.factorize(clips["video"])
    valid_N = valid_steps(reader.step_frames, clips["valid_frames"].to_numpy())
    num_cells = reader.shape[2] * reader.shape[3]  # opens the files before threads read them
    loader = ClipLoader(reader, clips, list(clips["class_name"].unique()), device, in_memory=False)
    batches = (batch.features_BTKKD for batch in loader.batches(BATCH_CLIPS))
    clip_features = zip(itertools.chain.from_iterable(batches), valid_N.tolist(), strict=True)
    # Clip by clip, so that the fp32 copy stays in the CPU's cache.
    sum_ND = torch.stack([clip_TKKD[:valid].flatten(0, 2).float().sum(dim=0) for clip_TKKD, valid in clip_features])
    sum_VD = np.zeros((len(videos), sum_ND.shape[1]))
    np.add.at(sum_VD, video_N, sum_ND.cpu().numpy())
    return sum_VD / (num_cells * np.bincount(video_N, weights=valid_N))[:, None]


def file_metadata(names: pd.Series, videos: pd.DataFrame, *, fps: float) -> np.ndarray:
    """Return width, height, aspect ratio, frame rate and duration in seconds of the videos in `names`, (V, 5).

    `videos` has the columns video, width, height, source_fps and num_frames (at `fps` frames per second).
    """
    assert names.isin(videos["video"]).all(), "clips of videos that were never subsampled"
    rows = videos.set_index("video").loc[names]
    ratio, seconds = rows["width"] / rows["height"], rows["num_frames"] / fps
    columns = pd.concat([rows["width"], rows["height"], ratio, rows["source_fps"], seconds], axis=1)
    return columns.fillna(UNKNOWN).to_numpy(np.float64)
