"""Videos that show where a model looked: attention maps drawn over the frames of chosen test clips."""

from pipeline_lib.heatmaps.rendering import render_heatmaps
from pipeline_lib.heatmaps.selection import select_clips

__all__ = ["render_heatmaps", "select_clips"]
