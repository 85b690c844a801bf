"""Stage 2: every video at one frame rate, and the undecodable ones in quarantine."""

from pipeline_lib.subsample.shards import check_quarantine, subsample_shard
from pipeline_lib.subsample.videos import SubsampledVideo, subsample_video

__all__ = [
    "SubsampledVideo",
    "check_quarantine",
    "subsample_shard",
    "subsample_video",
]
