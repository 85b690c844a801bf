"""Brings one video to a fixed frame rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.params import SubsampleParams
from pipeline_lib.video.ffmpeg import VideoError, open_video, run
from pipeline_lib.video.reading import FIRST_VIDEO_STREAM, count_frames, probe
from pipeline_lib.video.writing import EXACT_SCALING, h264_options

TIME_BASE = "1/90000"
"""Seconds per tick while frames are chosen: every usual rate is a whole number of ticks, or nearly."""

TOLERANCE = 0.1
"""Periods of the new rate by which a frame may be late and still be the one its moment shows (see `_graph`)."""


@dataclass(frozen=True)
class SubsampledVideo:
    """What came out of one video."""

    num_frames: int
    """Frames at the new rate, counted by decoding them."""
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
        source_fps = probe(source).fps
        stderr = run(_graph(source, destination, params), timeout_seconds=params.timeout_seconds)
        num_frames = count_frames(destination, timeout_seconds=params.timeout_seconds)
        if num_frames == 0:
            raise VideoError("no frame could be decoded")
        result = probe(destination)
    except BaseException:
        destination.unlink(missing_ok=True)
        raise
    return SubsampledVideo(num_frames, result.width, result.height, source_fps, stderr or None)


def _graph(source: Path, destination: Path, params: SubsampleParams) -> Any:
    """Return the ffmpeg graph: output frame k is the last source frame that begins by (k + TOLERANCE) / fps seconds.

    From 30 fps to 15 these are frames 0, 2, 4, ... Plain rounding would put frame 1 exactly between two outputs, where the
    jitter of a millisecond container decides. TOLERANCE keeps clear of that for every whole multiple of the rate up to 9.
    """
    # With several threads a decoder conceals damage differently from run to run; shards make up for the speed.
    video = open_video(source, threads=1)[FIRST_VIDEO_STREAM]
    video = video.filter("settb", TIME_BASE).filter("setpts", f"PTS-STARTPTS-{TOLERANCE}/({params.fps}*TB)")
    video = video.filter("fps", params.fps, round="up")
    video = video.filter("scale", "round(iw*sar)", "ih", out_range="tv", flags=EXACT_SCALING).filter("setsar", 1)
    # yuv420p needs even sizes: losing a line at the edge is better than resampling the whole picture.
    video = video.filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2", 0, 0)
    # What is decoded several times may be larger by a tenth, if it decodes twice as fast at the same quality.
    options = h264_options(crf=params.crf) | {"tune": "fastdecode"}
    return video.output(str(destination.absolute()), **options).overwrite_output()
