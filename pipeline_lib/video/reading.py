"""Reads videos: what they declare, how many frames they really hold, and the frames themselves, one at a time.

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
"""ffmpeg's name for the first video stream that is not a cover picture."""

PROBE_SECONDS = 60.0

_VIDEO_STREAM = re.compile(
    r"Stream #0:\d+\S*: Video: (?!.*\(attached pic\))(?P<codec>\w+).*?, (?P<width>\d+)x(?P<height>\d+)\b(?P<rest>.*)"
)
_RATE = re.compile(r"(?P<rate>[\d.]+)(?P<thousand>k?) fps")
_DURATION = re.compile(r"Duration: (?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>[\d.]+)")


@dataclass(frozen=True)
class VideoInfo:
    """What a file declares about its first video stream. Containers err: HMDB-51's claim a frame too many."""

    codec: str
    fps: float
    """Mean frame rate, to two decimals; nan if the file does not tell."""
    width: int
    """Stored width in pixels, before rotation and before correction to square pixels."""
    height: int
    has_audio: bool
    seconds: float = float("nan")
    """Duration; nan if the file does not tell."""


def probe(path: Path) -> VideoInfo:
    """Read what a file declares about itself, without decoding it.

    Raises:
        VideoError: not a video file, or one of pictures that are too large.
    """
    check_file(path)
    # There is no ffprobe in the wheel; `ffmpeg -i` without an output prints the same and exits with an error.
    options = [part for name, value in INPUT_OPTIONS.items() for part in (f"-{name}", str(value))]
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
    """Return what ffmpeg's log says about the first video stream in it.

    Raises:
        VideoError: there is none.
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
    """Return how many frames ffmpeg's log says it wrote."""
    counts = re.findall(r"^frame=\s*(\d+)", text, re.MULTILINE)
    assert counts, "ffmpeg reports its frames at the end"
    return int(counts[-1])


def read_frames(
    path: Path,
    *,
    max_side: int | None = None,
    start_seconds: float = 0.0,
    timeout_seconds: float = 300.0,
) -> Iterator[np.ndarray]:
    """Yield the decoded frames as uint8 RGB (H, W, 3), rotated as the file says; only one is held in memory.

    Args:
        path: the video.
        max_side: most pixels of the longer side; larger frames are scaled down while they are decoded.
        start_seconds: frames before are left out; ffmpeg decodes from the last key frame before it, so that a late start costs
            little. Half a frame before the first one wanted is exact.
        timeout_seconds: longest silence of ffmpeg.

    Raises:
        VideoError: the video cannot be decoded, or holds no frame.
    """
    video = open_video(path, **({"ss": start_seconds} if start_seconds > 0 else {}))[FIRST_VIDEO_STREAM]
    if max_side is not None:
        sides = (f"min({side},{max_side})" for side in ("iw", "ih"))
        video = video.filter("scale", *sides, force_original_aspect_ratio="decrease", flags="bicubic")
    # PPM pictures carry their size, which rotation and mid-stream changes make hard to know beforehand.
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
    """Yield the PPM pictures of a pipe, up to its end."""
    while header := _read_header(pipe, timeout_seconds):
        width, height = (int(number) for number in header.split()[1:3])
        pixels = _read_exactly(pipe, width * height * 3, timeout_seconds)
        if len(pixels) < width * height * 3:
            return
        yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _read_header(pipe: Any, timeout_seconds: float) -> bytes:
    """Return a picture's header: `P6`, its size and `255`, each on a line; or nothing at the end."""
    header = _read_exactly(pipe, len(b"P6\n1 1\n255\n"), timeout_seconds)
    while header and header.count(b"\n") < 3:
        header += _read_exactly(pipe, 1, timeout_seconds)
    return bytes(header)


def _read_exactly(pipe: Any, size_bytes: int, timeout_seconds: float) -> bytearray:
    """Read that many bytes, or fewer if the pipe ends before."""
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
