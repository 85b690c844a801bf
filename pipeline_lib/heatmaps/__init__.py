"""The heatmaps stage: render videos of test clips with attention maps drawn over the frames."""

from pipeline_lib.heatmaps.rendering import render_heatmaps
from pipeline_lib.heatmaps.selection import select_clips

__all__ = ["render_heatmaps", "select_clips"]
