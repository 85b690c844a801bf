"""What controls see of a video: its features averaged to one vector, or what its file's header tells."""

# V videos, N clips, T frames of a clip, D channels (or columns)

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import torch

from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.training.batches import ClipLoader

CLIPS_AT_ONCE = 32
"""Clips read before they are averaged; 30 frames of VGG16's features take 1.5 MB."""

UNKNOWN = -1.0
"""Stands for a number that the file does not tell; no file has it."""


def average_features(clips: pd.DataFrame, reader: FeatureReader, device: torch.device) -> np.ndarray:
    """Return features_VD of each video, in the order of their first clips, averaged over its valid frames and all cells.

    Raises:
        UserError: a clip is in none of the feature files.
    """
    video_N, videos = pd.factorize(clips["video"])
    valid_N = clips["valid_frames"].to_numpy()
    num_cells = reader.shape[2] * reader.shape[3]  # opens the files, before threads read them
    source = ClipLoader(reader, clips, list(clips["class_name"].unique()), device, in_memory=False)
    batches = (batch.features_BTKKD for batch in source.batches(CLIPS_AT_ONCE))
    sums = zip(itertools.chain.from_iterable(batches), valid_N.tolist(), strict=True)
    # Clip by clip: what is converted to fp32 stays in a CPU's cache until it is added up.
    sum_ND = torch.stack([clip_TKKD[:valid].flatten(0, 2).float().sum(dim=0) for clip_TKKD, valid in sums])
    sum_VD = np.zeros((len(videos), sum_ND.shape[1]))
    np.add.at(sum_VD, video_N, sum_ND.cpu().numpy())
    return sum_VD / (num_cells * np.bincount(video_N, weights=valid_N))[:, None]


def file_metadata(names: pd.Series, videos: pd.DataFrame, *, fps: float) -> np.ndarray:
    """Return width, height and their ratio, frame rate and seconds of each video of `names`, (V, 5).

    `videos` has columns video, width, height, source_fps and num_frames, the last counted at `fps` frames a second.
    """
    assert names.isin(videos["video"]).all(), "clips of videos that were never subsampled"
    rows = videos.set_index("video").loc[names]
    ratio, seconds = rows["width"] / rows["height"], rows["num_frames"] / fps
    columns = pd.concat([rows["width"], rows["height"], ratio, rows["source_fps"], seconds], axis=1)
    return columns.fillna(UNKNOWN).to_numpy(np.float64)
