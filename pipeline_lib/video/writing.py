"""Writes videos that browsers play, whose bytes depend on the frames alone, and animated GIFs.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ffmpeg
import numpy as np
from PIL import Image

from pipeline_lib.video.ffmpeg import VideoError, check_status, command, read_tail, start, stop

CLOSE_SECONDS = 300.0
"""Longest time ffmpeg may take to finish a file after its last frame."""

SAME_BYTES: dict[str, Any] = {
    "map_metadata": -1,
    "fflags": "+bitexact",
    "flags:v": "+bitexact",
    # x264's output depends on the number of its threads.
    "threads": 1,
}
"""Output options under which equal frames give equal bytes, on any machine."""

PRESET = "fast"
"""x264's effort. `veryfast` takes half the processor time but lost 1.5 dB on an HMDB-51 clip, at equal crf and file size."""

EXACT_SCALING = "bicubic+accurate_rnd+full_chroma_int+bitexact"
"""Flags of ffmpeg's scaler, which also converts between RGB and YUV: the same result on any processor."""


def h264_options(*, crf: int, preset: str = PRESET, x264_params: str = "") -> dict[str, Any]:
    """Return the output options of an H.264 MP4 that browsers play while it still loads, and whose bytes repeat.

    `x264_params` are `key=value` pairs joined by colons, which change what the preset says.
    """
    playable = {"format": "mp4", "vcodec": "libx264", "pix_fmt": "yuv420p", "movflags": "+faststart"}
    # x264's output depends on the processor unless told otherwise.
    x264 = {"x264-params": ":".join(filter(None, ("cpu-independent=1", x264_params)))}
    return playable | {"crf": crf, "preset": preset, "fps_mode": "passthrough"} | SAME_BYTES | x264


def write_gif(frames: Sequence[np.ndarray], path: Path, *, fps: float) -> None:
    """Write uint8 RGB frames (T of (H, W, 3)) as an endless GIF with one palette made for all of them.

    Pillow's octree takes a twentieth of the time of ffmpeg's `palettegen` and `paletteuse`, and came as close to the frames
    (37.1 and 36.9 dB on clips of 200 x 200 pixels). GIF knows hundredths of a second: frames take turns in being longer.
    """
    if not frames:
        raise ValueError(f"{path}: a GIF needs at least one frame")
    palette = Image.fromarray(np.concatenate(frames)).quantize(method=Image.Quantize.FASTOCTREE)
    first, *others = (Image.fromarray(frame_HW3).quantize(palette=palette, dither=Image.Dither.NONE) for frame_HW3 in frames)
    ends_ms = [10 * round(100 * number / fps) for number in range(len(frames) + 1)]
    first.save(path, save_all=True, append_images=others, duration=np.diff(ends_ms).tolist(), loop=0)


class FrameSink:
    """Feeds frames to an ffmpeg graph; a context manager. The output file is removed if anything goes wrong."""

    def __init__(self, output: Any, path: Path, height: int, width: int) -> None:
        """Take the graph's output node, the file it writes, and the size of its frames in pixels."""
        self._arguments = command(output.overwrite_output())
        self._path = path
        self._shape = (height, width, 3)

    def __enter__(self) -> Self:
        """Start ffmpeg."""
        self._log = tempfile.TemporaryFile()
        self._process = start(self._arguments, self._log, stdin=subprocess.PIPE)
        return self

    def write(self, frame_HW3: np.ndarray) -> None:
        """Append one uint8 RGB frame.

        Raises:
            ValueError: wrong shape or type.
            VideoError: ffmpeg has failed.
        """
        if frame_HW3.shape != self._shape or frame_HW3.dtype != np.uint8:
            raise ValueError(f"{self._path}: frames must be uint8 {self._shape}, got {frame_HW3.dtype} {frame_HW3.shape}")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame_HW3).data)
        except BrokenPipeError:
            self._finish()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the file, or remove it after an error."""
        whole = False
        try:
            if error is None:
                self._finish()
                whole = True
        finally:
            stop(self._process)
            self._close_input()
            self._log.close()
            if not whole:
                self._path.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Wait until ffmpeg has written everything; raise its error if it failed."""
        self._close_input()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            raise VideoError(f"ffmpeg took longer than {CLOSE_SECONDS:g} seconds to finish {self._path}") from None
        check_status(self._process.returncode, read_tail(self._log))

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        # An ffmpeg that has failed reads no more; its exit status tells why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class VideoWriter(FrameSink):
    """Writes an H.264 MP4; use as a context manager."""

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: float,
        crf: int = 18,
        preset: str = PRESET,
        x264_params: str = "",
    ) -> None:
        """Describe the video: even width and height in pixels; crf 18 is visually lossless; the rest as in `h264_options`.

        Raises:
            ValueError: odd width or height, which yuv420p cannot hold.
        """
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise ValueError(f"{path}: H.264 video needs even width and height, got {width}x{height}")
        frames = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps)
        # Players guess untagged colours from the picture's size: convert to one standard and say which.
        converted = frames.filter("scale", out_color_matrix="bt709", out_range="tv", flags=EXACT_SCALING)
        colours = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
        options = h264_options(crf=crf, preset=preset, x264_params=x264_params) | colours
        super().__init__(converted.output(str(path.absolute()), **options), path, height, width)
