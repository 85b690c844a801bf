"""Read videos: metadata, number of frames, and frames.

Shape legend: H height, W width.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.video.ffmpeg import (
    INPUT_OPTIONS,
    MAX_PIXELS,
    REFUSED_PIXELS,
    TOO_LARGE,
    VideoError,
    check_file,
    check_status,
    clean_text,
    command,
    ffmpeg_path,
    open_video,
    read_tail,
    run,
    start,
    stop,
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


def read_frames(
    path: Path,
    *,
    max_side: int | None = None,
    start_seconds: float = 0.0,
    timeout_seconds: float = 300.0,
) -> Iterator[np.ndarray]:
    """Yield the decoded frames as uint8 RGB (H, W, 3), one at a time, with the rotation that the file declares.

    Args:
        path: the video.
        max_side: maximum length of the longer side in pixels; larger frames are scaled down.
        start_seconds: skip earlier frames, cheaply, by seeking to a key frame. Pass the first wanted frame's time minus half a
            frame's duration to start exactly there.
        timeout_seconds: maximum time to wait for output of ffmpeg.

    Raises:
        VideoError: the video cannot be decoded, or has no frames.
    """
    video = open_video(path, **({"ss": start_seconds} if start_seconds > 0 else {}))[FIRST_VIDEO_STREAM]
    if max_side is not None:
        sides = (f"min({side},{max_side})" for side in ("iw", "ih"))
        video = video.filter("scale", *sides, force_original_aspect_ratio="decrease", flags="bicubic")
    # PPM images carry their size, which rotation and mid-stream changes make hard to know in advance.
    output = video.output("pipe:", format="image2pipe", vcodec="ppm", pix_fmt="rgb24", fps_mode="passthrough")
    with tempfile.TemporaryFile() as log:
        process = start(command(output), log, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdout is not None
        try:
            yield from _read_pictures(process.stdout, timeout_seconds)
            check_status(process.wait(timeout_seconds), read_tail(log))
        except VideoError as error:
            raise VideoError(error.reason, read_tail(log)) from None
        finally:
            stop(process)
            process.stdout.close()


def _read_pictures(pipe: Any, timeout_seconds: float) -> Iterator[np.ndarray]:
    """Yield the PPM images of a pipe until it ends."""
    while header := _read_header(pipe, timeout_seconds):
        width, height = (int(number) for number in header.split()[1:3])
        pixels = _read_exactly(pipe, width * height * 3, timeout_seconds)
        if len(pixels) < width * height * 3:
            return
        yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _read_header(pipe: Any, timeout_seconds: float) -> bytes:
    """Read an image's header (`P6`, size and `255`, each on a line), or b"" at the end of the pipe."""
    header = _read_exactly(pipe, len(b"P6\n1 1\n255\n"), timeout_seconds)
    while header and header.count(b"\n") < 3:
        header += _read_exactly(pipe, 1, timeout_seconds)
    return bytes(header)


def _read_exactly(pipe: Any, size_bytes: int, timeout_seconds: float) -> bytearray:
    """Read `size_bytes` bytes, or fewer if the pipe ends."""
    content = bytearray(size_bytes)
    num_read = 0
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while num_read < size_bytes:
        if not poll.poll(timeout_seconds * 1000):
            raise VideoError(f"ffmpeg was silent for {timeout_seconds:g} seconds")
        with memoryview(content)[num_read:] as rest:
            received = os.readv(pipe.fileno(), [rest])
        if received == 0:
            break
        num_read += received
    del content[num_read:]
    return content
