"""Main program of a decoder process: reads requests from stdin and writes frames to stdout.

It is run as a script (see `pipeline_lib.video.decoders`) and imports only PyAV and NumPy, so that it starts fast; other modules
are imported when a request first needs them. A response is any number of `IMAGES` messages followed by `END` or `ERROR`. Each
message starts with a header. The process exits at the end of stdin.
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

HEADER = struct.Struct("<6I")
"""Kind of message, followed for `IMAGES` by their position in the request's list, their number, height, width and channels, or
for an `ERROR` by the length of its text in bytes."""

IMAGES, END, ERROR = range(3)

CHUNK_BYTES = 8 << 20
"""Maximum size of the images in one message, unless a single image is larger."""

CHUNK_IMAGES = 64
"""Maximum number of images in one message, so that small images are not sent long after large ones of the same frames."""

ROOT = Path(__file__).parents[2]
"""Folder that this package is imported from."""


def main() -> None:
    """Respond to requests until the end of stdin. A request is a line with the arguments of `_respond` as JSON."""
    with suppress(BrokenPipeError):
        for line in sys.stdin:
            _respond(*json.loads(line))


def _respond(path: str, max_side: int | None, wanted: Sequence[tuple[str, str, Sequence[Any]] | None]) -> None:
    """Send what is wanted of a video: its frames (None), and images that a function (module, name, arguments) makes of them."""
    try:
        for index, images in _interleave(path, max_side, wanted):
            _send(HEADER.pack(IMAGES, index, len(images), *images[0].shape), *(image.data for image in images))
    except (av.FFmpegError, ValueError) as error:
        text = (getattr(error, "strerror", None) or str(error)).encode()
        _send(HEADER.pack(ERROR, len(text), 0, 0, 0, 0), text)
    else:
        _send(HEADER.pack(END, 0, 0, 0, 0, 0))


def _interleave(
    path: str, max_side: int | None, wanted: Sequence[tuple[str, str, Sequence[Any]] | None]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield chunks of everything wanted with its index, the one that is furthest behind first, so that few frames are kept."""
    copies = itertools.tee(_decode(path, max_side), len(wanted))
    chunks = {
        index: _chunks(_function(*made_by[:2])(frames, *made_by[2]) if made_by else frames)
        for index, (made_by, frames) in enumerate(zip(wanted, copies, strict=True))
    }
    del copies
    sent = dict.fromkeys(chunks, 0)
    while chunks:
        index = min(chunks, key=sent.__getitem__)
        images = next(chunks[index], None)
        if images is None:
            del chunks[index]
            continue
        sent[index] += len(images)
        yield index, images


def _function(module: str, name: str) -> Any:
    """Import a function of this package."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return getattr(import_module(module), name)


def _chunks(images: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield lists of consecutive images of the same size, up to `CHUNK_IMAGES` and `CHUNK_BYTES` each."""
    chunk: list[np.ndarray] = []
    for pixels in images:
        most = min(CHUNK_IMAGES, CHUNK_BYTES // pixels.nbytes)
        if chunk and (pixels.shape != chunk[0].shape or len(chunk) >= most):
            yield chunk
            chunk = []
        chunk.append(pixels)
    if chunk:
        yield chunk


def _decode(path: str, max_side: int | None) -> Iterator[np.ndarray]:
    """Yield the frames (uint8 RGB, H x W x 3). A width or height above `max_side` is scaled down to it."""
    reformatter = VideoReformatter()
    with av.open(path, options={"protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # there is one process per core
        for frame in container.decode(stream):
            yield _to_array(_to_rgb(reformatter, frame, max_side))


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
