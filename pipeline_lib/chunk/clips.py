"""Cut videos into clips of a fixed number of frames. The result is a table; no frames are copied."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline_lib.params import ChunkParams

OF_VIDEO = ["video", "class_name", "group", "split"]


def cut_clips(videos: pd.DataFrame, params: ChunkParams) -> pd.DataFrame:
    """Cut every video into consecutive, non-overlapping clips of `params.frames` frames.

    Args:
        videos: columns `video`, `class_name`, `num_frames` and, if known, `group` and `split`; videos without frames yield no
            clip.
        params: `short` decides whether a video shorter than a clip yields a clip with fewer `valid_frames` or none. `tail`
            decides the same for the frames after a longer video's last full clip.

    Returns:
        One row per clip, in the order of `videos`: clip (`<video>#<first frame>`), video, class_name, group and split if
        known, first_frame, valid_frames.
    """
    num_frames = videos["num_frames"].to_numpy()
    num_full, rest = np.divmod(num_frames, params.frames)
    keeps_rest = np.where(num_full == 0, params.short == "pad", params.tail == "pad")
    num_clips = num_full + (keeps_rest & (rest > 0))
    rows = np.repeat(np.arange(len(videos)), num_clips)
    position = np.arange(len(rows)) - np.repeat(np.cumsum(num_clips) - num_clips, num_clips)
    clips = videos[[name for name in OF_VIDEO if name in videos]].iloc[rows].reset_index(drop=True)
    clips.insert(0, "clip", clips["video"].astype("str") + _suffixes(position, params.frames))
    clips["first_frame"] = position * params.frames
    clips["valid_frames"] = np.minimum(params.frames, num_frames[rows] - clips["first_frame"])
    return clips


def _suffixes(position: np.ndarray, frames: int) -> pd.Series:
    """Return `#<first frame>` for clips at these positions in their videos."""
    distinct = [f"#{first:05d}" for first in range(0, (position.max(initial=-1) + 1) * frames, frames)]
    return pd.Series(distinct, dtype="str").take(position).reset_index(drop=True)


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
