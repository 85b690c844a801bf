"""Writing films as HMDB-51's are: MPEG-4 part 2 in AVI."""

from __future__ import annotations

from pathlib import Path

import ffmpeg
import numpy as np

from pipeline_lib.video.writing import EXACT_SCALING, FrameSink

CONTAINER_AND_CODEC = {"format": "avi", "vcodec": "mpeg4", "vtag": "DX50", "pix_fmt": "yuv420p"}
SAME_BYTES = {"threads": 1, "fflags": "+bitexact", "flags:v": "+bitexact", "map_metadata": -1}


class AviWriter(FrameSink):
    """Writes an MPEG-4 AVI; use as a context manager. Equal frames give equal bytes."""

    def __init__(self, path: Path, *, width: int, height: int, fps: int, quality: int) -> None:
        """Describe the video: size in pixels, and the quantiser of the codec, 2 (best) to 31."""
        frames = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps)
        converted = frames.filter("scale", flags=EXACT_SCALING)
        options = CONTAINER_AND_CODEC | SAME_BYTES | {"qscale:v": quality}
        super().__init__(converted.output(str(path.absolute()), **options), path, height, width)


def write_broken_avi(path: Path, intact: Path, rng: np.random.Generator) -> None:
    """Write what a broken download looks like: the first bytes of a video, then garbage."""
    path.write_bytes(intact.read_bytes()[:90] + rng.bytes(6000))
