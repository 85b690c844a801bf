"""Read videos: metadata, number of frames, and frames.

Shape legend: H height, W width.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph

from pipeline_lib.video.ffmpeg import (
    INPUT_OPTIONS,
    MAX_PIXELS,
    REFUSED_PIXELS,
    TOO_LARGE,
    VideoError,
    check_file,
    check_status,
    clean_text,
    ffmpeg_path,
    open_video,
    run,
)

FIRST_VIDEO_STREAM = "V:0"
"""ffmpeg's stream specifier for the first video stream that is not a cover picture."""

PROBE_SECONDS = 60.0

_VIDEO_STREAM = re.compile(
    r"Stream #0:\d+\S*: Video: (?!.*\(attached pic\))(?P<codec>\w+).*?, (?P<width>\d+)x(?P<height>\d+)\b(?P<rest>.*)"
)
_RATE = re.compile(r"(?P<rate>[\d.]+)(?P<thousand>k?) fps")
_DURATION = re.compile(r"Duration: (?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>[\d.]+)")


@dataclass(frozen=True)
class VideoInfo:
    """Declared properties of a file's first video stream. They may be wrong: count frames with `count_frames`."""

    codec: str
    fps: float
    """Mean frame rate to two decimals; nan if not declared."""
    width: int
    """Stored width in pixels, before rotation and before correction to square pixels."""
    height: int
    has_audio: bool
    seconds: float = float("nan")
    """Duration; nan if not declared."""


def probe(path: Path) -> VideoInfo:
    """Read a file's declared properties without decoding it.

    Raises:
        VideoError: not a video file, or its frames are too large.
    """
    check_file(path)
    # The imageio-ffmpeg wheel has no ffprobe; `ffmpeg -i` without an output prints the same and exits with an error.
    options = [argument for name, value in INPUT_OPTIONS.items() for argument in (f"-{name}", str(value))]
    arguments = [ffmpeg_path(), "-hide_banner", "-nostdin", *options, "-i", str(path.absolute())]
    try:
        stderr = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False, process_group=0
        ).stderr
    except subprocess.TimeoutExpired:
        raise VideoError(f"ffmpeg took longer than {PROBE_SECONDS:g} seconds to open it") from None
    text = clean_text(stderr)
    if "Input #0" not in text or REFUSED_PIXELS in text:
        check_status(1, text)
    info = parse_info(text)
    if info.width * info.height > MAX_PIXELS:
        raise VideoError(TOO_LARGE, text)
    return info


def parse_info(text: str) -> VideoInfo:
    """Parse the first video stream in ffmpeg's log.

    Raises:
        VideoError: there is no video stream.
    """
    stream = _VIDEO_STREAM.search(text)
    if not stream:
        raise VideoError("no video stream", text)
    rate = _RATE.search(stream["rest"])
    duration = _DURATION.search(text)
    return VideoInfo(
        codec=stream["codec"],
        fps=float(rate["rate"]) * (1000 if rate["thousand"] else 1) if rate else float("nan"),
        width=int(stream["width"]),
        height=int(stream["height"]),
        has_audio=bool(re.search(r"Stream #0:\d+\S*: Audio:", text)),
        seconds=_seconds(duration) if duration else float("nan"),
    )


def _seconds(duration: re.Match[str]) -> float:
    return 3600 * int(duration["hours"]) + 60 * int(duration["minutes"]) + float(duration["seconds"])


def count_frames(path: Path, *, timeout_seconds: float = 300.0) -> int:
    """Count a video's frames by decoding them all.

    Raises:
        VideoError: the video cannot be decoded.
    """
    stream = open_video(path)[FIRST_VIDEO_STREAM].output("pipe:", format="null", fps_mode="passthrough")
    return parse_num_frames(run(stream, timeout_seconds=timeout_seconds).info)


def parse_num_frames(text: str) -> int:
    """Parse the number of frames that ffmpeg wrote from its log."""
    counts = re.findall(r"^frame=\s*(\d+)", text, re.MULTILINE)
    assert counts, "no frame count in ffmpeg's log"
    return int(counts[-1])


def read_frames(path: Path, *, max_side: int | None = None, start_seconds: float = 0.0) -> Iterator[np.ndarray]:
    """Yield the frames of a video that this package wrote as uint8 RGB (H, W, 3), one at a time.

    Args:
        path: the video. PyAV reads others too, but without the rotation that they may declare.
        max_side: maximum length of the longer side in pixels; larger frames are scaled down.
        start_seconds: skip earlier frames, cheaply, by seeking to a key frame. Pass the first wanted frame's time minus half a
            frame's duration to start exactly there.

    Raises:
        VideoError: the video cannot be decoded.
    """
    check_file(path)
    try:
        with av.open(path, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video or not container.streams.video[0].pix_fmt:
                raise VideoError("no video stream that can be decoded")
            graph = _to_rgb(container.streams.video[0], max_side)
            for frame in _frames_from(container, start_seconds):
                graph.vpush(frame)
                yield np.ascontiguousarray(graph.vpull().to_ndarray())
    except av.FFmpegError as error:
        check_status(1, error.strerror or str(error))


def _to_rgb(stream: av.VideoStream, max_side: int | None) -> Graph:
    """Return the filters that scale and convert a frame as the ffmpeg program does, bit by bit."""
    graph = Graph()
    nodes = [graph.add_buffer(template=stream), graph.add("format", "rgb24"), graph.add("buffersink")]
    if max_side is not None:
        sides = ":".join(f"'min({side},{max_side})'" for side in ("iw", "ih"))
        nodes.insert(1, graph.add("scale", f"{sides}:force_original_aspect_ratio=decrease:flags=bicubic"))
    graph.link_nodes(*nodes).configure()
    return graph


def _frames_from(container: InputContainer, start_seconds: float) -> Iterator[av.VideoFrame]:
    """Return the decoded frames that start at `start_seconds` or later."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # callers read several videos at once
    if start_seconds <= 0:
        return container.decode(stream)
    start = start_seconds + (container.start_time or 0) / av.time_base
    container.seek(int(start * av.time_base))
    return dropwhile(lambda frame: frame.time is not None and frame.time < start, container.decode(stream))
