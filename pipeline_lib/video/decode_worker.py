"""Main program of a decoder process: reads requests from stdin and writes frames to stdout.

It is run as a script (see `pipeline_lib.video.decoders`) and imports only PyAV and NumPy, so that it starts fast.
A response is any number of `FRAMES` messages followed by `END` or `ERROR`. Each message starts with a header. The process exits
at the end of stdin.
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
"""Kind of message, followed by number, height and width of `FRAMES`, or by the length of an `ERROR`'s text in bytes."""

FRAMES, END, ERROR = range(3)

CHUNK_BYTES = 8 << 20
"""Maximum size of the frames in one message, unless a single frame is larger."""


def main() -> None:
    """Respond to requests until the end of stdin. A request is a line with the arguments of `_decode` as JSON."""
    with suppress(BrokenPipeError):
        for line in sys.stdin:
            _respond(*json.loads(line))


def _respond(path: str, max_side: int | None) -> None:
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
    """Yield lists of frames (uint8 RGB, H x W x 3) of the same size, up to `CHUNK_BYTES` each.

    A width or height above `max_side` is scaled down to it.
    """
    chunk: list[np.ndarray] = []
    reformatter = VideoReformatter()
    with av.open(path, options={"protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # there is one process per core
        for frame in container.decode(stream):
            pixels = _to_array(_to_rgb(reformatter, frame, max_side))
            if chunk and (pixels.shape != chunk[0].shape or (len(chunk) + 1) * pixels.nbytes > CHUNK_BYTES):
                yield chunk
                chunk = []
            chunk.append(pixels)
    if chunk:
        yield chunk


def _to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame, max_side: int | None) -> av.VideoFrame:
    width, height = (min(side, max_side or side) for side in (frame.width, frame.height))
    scaling = None if (width, height) == (frame.width, frame.height) else "AREA"
    return reformatter.reformat(frame, width, height, "rgb24", interpolation=scaling, threads=1)


def _to_array(frame: av.VideoFrame) -> np.ndarray:
    """Return an RGB frame's pixels without the padding of its lines."""
    plane = frame.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return np.ascontiguousarray(lines[:, : 3 * frame.width]).reshape(frame.height, frame.width, 3)


def _send(header: bytes, *payload: bytes | memoryview) -> None:
    sys.stdout.buffer.write(header)
    for block in payload:
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
