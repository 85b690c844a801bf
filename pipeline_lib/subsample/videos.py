"""Brings one video to a fixed frame rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.params import SubsampleParams
from pipeline_lib.video.ffmpeg import MAX_PIXELS, VideoError, open_video, run
from pipeline_lib.video.reading import FIRST_VIDEO_STREAM, parse_info, parse_num_frames
from pipeline_lib.video.writing import EXACT_SCALING, h264_options

TIME_BASE = "1/90000"
"""Seconds per tick while frames are chosen: every usual rate is a whole number of ticks, or nearly."""

TOLERANCE = 0.1
"""Periods of the new rate by which a frame may be late and still be the one its moment shows (see `frames_at`)."""

PRESET = "ultrafast"
X264_PARAMS = "partitions=i4x4:subme=1"
"""Intra blocks of 4x4 and motion to a quarter of a pixel: better pictures in smaller files for an eighth more time. Why this
preset: docs/decisions/2026-11-29-subsampling.md."""


@dataclass(frozen=True)
class SubsampledVideo:
    """What came out of one video."""

    num_frames: int
    """Frames at the new rate."""
    width: int
    height: int
    source_fps: float
    """Mean frame rate the source declares; nan if it does not."""
    stderr: str | None
    """What ffmpeg complained about while it left out damaged frames; None if nothing."""


def subsample_video(source: Path, destination: Path, params: SubsampleParams) -> SubsampledVideo:
    """Write `source` as an H.264 MP4 of exactly `params.fps`: upright, silent, square pixels, even width and height.

    Frames that cannot be decoded are left out, as players do: HMDB-51's DivX files carry harmless errors, and of a file
    cut off midway the beginning is kept. It fails if no frame decodes, or if ffmpeg gives up (more than two thirds of the
    packets damaged). Equal input gives equal bytes.

    Raises:
        VideoError: the video cannot be decoded, or not within `params.timeout_seconds`; nothing is left at `destination`.
    """
    try:
        options = h264_options(crf=params.crf, preset=PRESET, x264_params=X264_PARAMS)
        output = frames_at(source, params.fps).output(str(destination.absolute()), **options).overwrite_output()
        log = run(output, timeout_seconds=params.timeout_seconds)
        num_frames = parse_num_frames(log.info)
        if num_frames == 0:
            raise VideoError("no frame could be decoded", log.errors)
    except BaseException:
        destination.unlink(missing_ok=True)
        raise
    # The last one: what stands before may quote the source's metadata.
    source_info, _, result_info = log.info.rpartition("Output #0, mp4")
    result = parse_info(result_info)
    return SubsampledVideo(num_frames, result.width, result.height, parse_info(source_info).fps, log.errors or None)


def frames_at(source: Path, fps: float) -> Any:
    """Return the graph of a video's frames at a rate: frame k is the last that begins by (k + TOLERANCE) / fps seconds.

    From 30 fps to 15 these are frames 0, 2, 4, ... Plain rounding would put frame 1 exactly between two outputs, where the
    jitter of a millisecond container decides. TOLERANCE keeps clear of that for every whole multiple of the rate up to 9.
    """
    video = open_video(source)[FIRST_VIDEO_STREAM]
    video = video.filter("settb", TIME_BASE).filter("setpts", f"PTS-STARTPTS-{TOLERANCE}/({fps}*TB)")
    video = video.filter("fps", fps, round="up")
    # 0 leaves the width as it is, where a file claims pixels of an absurd shape.
    width = f"if(lte(iw*sar*ih,{MAX_PIXELS}),round(iw*sar),0)"
    video = video.filter("scale", width, "ih", out_range="tv", flags=EXACT_SCALING).filter("setsar", 1)
    # yuv420p needs even sizes: losing a line at the edge is better than resampling the whole picture.
    return video.filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2", 0, 0)
