"""Convert one video to a fixed frame rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.params import SubsampleParams
from pipeline_lib.video.ffmpeg import MAX_PIXELS, VideoError, open_video, run
from pipeline_lib.video.reading import FIRST_VIDEO_STREAM, parse_info, parse_num_frames
from pipeline_lib.video.writing import EXACT_SCALING, h264_options

TIME_BASE = "1/90000"
"""Seconds per tick for choosing frames; the period of common rates is a whole number of ticks, or nearly."""

TOLERANCE = 0.1
"""Maximum lateness of a frame, in periods of the new rate (see `frames_at`)."""

PRESET = "ultrafast"
X264_PARAMS = "partitions=i4x4:subme=1"
"""4x4 intra blocks and quarter-pixel motion. See docs/decisions/2026-11-29-subsampling.md."""


@dataclass(frozen=True)
class SubsampledVideo:
    """Description of a subsampled video."""

    num_frames: int
    """Number of frames at the new rate."""
    width: int
    height: int
    source_fps: float
    """Declared mean frame rate of the original video; nan if not declared."""
    stderr: str | None
    """ffmpeg's errors about frames that it could not decode; None without errors."""


def subsample_video(source: Path, destination: Path, params: SubsampleParams) -> SubsampledVideo:
    """Write `source` as an H.264 MP4 at exactly `params.fps`: upright, no audio, square pixels, even width and height.

    Frames that cannot be decoded are skipped, like in players: HMDB-51's DivX files have harmless errors, and a truncated file
    keeps its beginning. Equal input gives equal bytes.

    Raises:
        VideoError: no frame can be decoded, ffmpeg gives up (more than two thirds of the packets are damaged), or it takes
            longer than `params.timeout_seconds`. `destination` is removed.
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
    # Split at the last match, because the source's metadata may contain the same text.
    source_info, _, result_info = log.info.rpartition("Output #0, mp4")
    result = parse_info(result_info)
    return SubsampledVideo(num_frames, result.width, result.height, parse_info(source_info).fps, log.errors or None)


def frames_at(source: Path, fps: float) -> Any:
    """Return the graph of a video at a new rate, whose frame k is the last one that starts by (k + TOLERANCE) / fps seconds.

    From 30 fps to 15 fps these are the frames 0, 2, 4, ... With rounding, frame 1 would be exactly between two outputs, and the
    jitter of millisecond timestamps would decide. TOLERANCE avoids such ties for whole multiples of the rate up to 9.
    """
    video = open_video(source)[FIRST_VIDEO_STREAM]
    video = video.filter("settb", TIME_BASE).filter("setpts", f"PTS-STARTPTS-{TOLERANCE}/({fps}*TB)")
    video = video.filter("fps", fps, round="up")
    # 0 keeps the width if the declared pixel aspect ratio is absurd.
    width = f"if(lte(iw*sar*ih,{MAX_PIXELS}),round(iw*sar),0)"
    video = video.filter("scale", width, "ih", out_range="tv", flags=EXACT_SCALING).filter("setsar", 1)
    # yuv420p needs even sizes; cropping a line is better than resampling the whole frame.
    return video.filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2", 0, 0)
