"""Cut videos into clips of a fixed number of frames. The result is a table; no frames are copied."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline_lib.params import ChunkParams

COLUMNS = ["clip", "video", "class_name", "first_frame", "valid_frames"]


def cut_clips(videos: pd.DataFrame, params: ChunkParams) -> pd.DataFrame:
    """Cut every video into consecutive, non-overlapping clips of `params.frames` frames.

    Args:
        videos: columns `video`, `class_name` and `num_frames`; videos without frames yield no clip.
        params: `short` decides whether a video shorter than a clip yields a clip with fewer `valid_frames` or none. `tail`
            decides the same for the frames after a longer video's last full clip.

    Returns:
        One row per clip, in the order of `videos`: clip (`<video>#<first frame>`), video, class_name, first_frame,
        valid_frames.
    """
    num_frames = videos["num_frames"].to_numpy()
    num_full, rest = np.divmod(num_frames, params.frames)
    keeps_rest = np.where(num_full == 0, params.short == "pad", params.tail == "pad")
    num_clips = num_full + (keeps_rest & (rest > 0))
    rows = np.repeat(np.arange(len(videos)), num_clips)
    clips = videos[["video", "class_name"]].iloc[rows].reset_index(drop=True)
    position = np.arange(len(clips)) - np.repeat(np.cumsum(num_clips) - num_clips, num_clips)
    clips["first_frame"] = position * params.frames
    clips["valid_frames"] = np.minimum(params.frames, num_frames[rows] - clips["first_frame"])
    clips["clip"] = [f"{video}#{first:05d}" for video, first in zip(clips["video"], clips["first_frame"], strict=True)]
    return clips[COLUMNS]


def count_rests(videos: pd.DataFrame, params: ChunkParams) -> dict[str, int]:
    """Count the videos padded or dropped by the `short` and `tail` policies, and the dropped frames."""
    num_frames = videos["num_frames"]
    is_short = num_frames < params.frames
    rest = num_frames % params.frames
    has_tail = ~is_short & (rest > 0)
    dropped = (is_short & (params.short == "drop")) | (has_tail & (params.tail == "drop"))
    return {
        "short_padded": int(is_short.sum()) if params.short == "pad" else 0,
        "short_dropped": int(is_short.sum()) if params.short == "drop" else 0,
        "tail_padded": int(has_tail.sum()) if params.tail == "pad" else 0,
        "tail_dropped": int(has_tail.sum()) if params.tail == "drop" else 0,
        "frames_dropped": int(rest[dropped].sum()),
    }
