"""A process that decodes videos for another: requests come in on stdin, frames go out on stdout.

Started as a file (see `pipeline_lib.video.decoders`) it imports PyAV and NumPy alone, and is ready in a fifth of a second.
An answer is any number of `FRAMES`, then `END` or `ERROR`; each begins with a header. The process ends when its stdin does.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

import av
import numpy as np
from av.video.reformatter import VideoReformatter

HEADER = struct.Struct("<4I")
"""Kind of message; then of `FRAMES` their number, height and width, of `ERROR` the bytes of its text."""

FRAMES, END, ERROR = range(3)

CHUNK_BYTES = 8 << 20
"""Most bytes of frames in one message, unless a single one is larger."""


def main() -> None:
    """Answer requests, each the arguments of `_decode` as JSON on a line, until there are no more."""
    with suppress(BrokenPipeError):
        for line in sys.stdin:
            _answer(*json.loads(line))


def _answer(path: str, max_side: int | None) -> None:
    try:
        for frames in _decode(path, max_side):
            height, width, _ = frames[0].shape
            _send(HEADER.pack(FRAMES, len(frames), height, width), *(pixels.data for pixels in frames))
    except (av.FFmpegError, ValueError) as error:
        text = (getattr(error, "strerror", None) or str(error)).encode()
        _send(HEADER.pack(ERROR, len(text), 0, 0), text)
    else:
        _send(HEADER.pack(END, 0, 0, 0))


def _decode(path: str, max_side: int | None) -> Iterator[list[np.ndarray]]:
    """Yield frames (uint8 RGB, H x W x 3) of one size in lists of up to `CHUNK_BYTES`.

    A width or height above `max_side` is scaled down to it.
    """
    waiting: list[np.ndarray] = []
    reformatter = VideoReformatter()
    with av.open(path, options={"protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # there is a process a core
        for frame in container.decode(stream):
            pixels = _to_array(_to_rgb(reformatter, frame, max_side))
            if waiting and (pixels.shape != waiting[0].shape or (len(waiting) + 1) * pixels.nbytes > CHUNK_BYTES):
                yield waiting
                waiting = []
            waiting.append(pixels)
    if waiting:
        yield waiting


def _to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame, max_side: int | None) -> av.VideoFrame:
    width, height = (min(side, max_side or side) for side in (frame.width, frame.height))
    scaling = None if (width, height) == (frame.width, frame.height) else "AREA"
    return reformatter.reformat(frame, width, height, "rgb24", interpolation=scaling, threads=1)


def _to_array(frame: av.VideoFrame) -> np.ndarray:
    """Return an RGB frame's pixels, without the bytes that fill up its lines."""
    plane = frame.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return np.ascontiguousarray(lines[:, : 3 * frame.width]).reshape(frame.height, frame.width, 3)


def _send(header: bytes, *rest: bytes | memoryview) -> None:
    sys.stdout.buffer.write(header)
    for part in rest:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
