"""The chunk stage: cut videos into clips and assign them to splits without leaks."""

from pipeline_lib.chunk.clips import cut_clips
from pipeline_lib.chunk.collection import chunk_collection
from pipeline_lib.chunk.splits import check_trainable

__all__ = ["check_trainable", "chunk_collection", "cut_clips"]
