"""The subsample stage: convert every video to one frame rate, and quarantine those that cannot be decoded."""

from pipeline_lib.subsample.shards import check_quarantine, subsample_shard
from pipeline_lib.subsample.videos import SubsampledVideo, subsample_video

__all__ = [
    "SubsampledVideo",
    "check_quarantine",
    "subsample_shard",
    "subsample_video",
]
