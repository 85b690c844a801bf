"""Write browser-compatible videos with reproducible bytes, and animated GIFs.

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
"""Maximum time for ffmpeg to finish a file after the last frame."""

SAME_BYTES: dict[str, Any] = {
    "map_metadata": -1,
    "fflags": "+bitexact",
    "flags:v": "+bitexact",
    # x264's output depends on its number of threads.
    "threads": 1,
}
"""Output options for which equal frames give equal bytes on any machine."""

PRESET = "fast"
"""x264 preset."""

EXACT_SCALING = "bicubic+accurate_rnd+full_chroma_int+bitexact"
"""Flags of ffmpeg's scaler and RGB/YUV converter for the same result on any processor."""


def h264_options(*, crf: int, preset: str = PRESET, x264_params: str = "") -> dict[str, Any]:
    """Return the output options of an H.264 MP4 that browsers can stream, with reproducible bytes.

    `x264_params` are `key=value` pairs joined by colons, which override the preset.
    """
    playable = {"format": "mp4", "vcodec": "libx264", "pix_fmt": "yuv420p", "movflags": "+faststart"}
    # By default x264's output depends on the processor.
    x264 = {"x264-params": ":".join(filter(None, ("cpu-independent=1", x264_params)))}
    return playable | {"crf": crf, "preset": preset, "fps_mode": "passthrough"} | SAME_BYTES | x264


def write_gif(frames: Sequence[np.ndarray], path: Path, *, fps: float) -> None:
    """Write uint8 RGB frames (T of (H, W, 3)) as a looping GIF with one common palette.

    GIF durations are hundredths of a second, so the frames' durations vary to keep the mean rate.
    """
    if not frames:
        raise ValueError(f"{path}: a GIF needs at least one frame")
    palette = Image.fromarray(np.concatenate(frames)).quantize(method=Image.Quantize.FASTOCTREE)
    first, *others = (Image.fromarray(frame_HW3).quantize(palette=palette, dither=Image.Dither.NONE) for frame_HW3 in frames)
    ends_ms = [10 * round(100 * number / fps) for number in range(len(frames) + 1)]
    first.save(path, save_all=True, append_images=others, duration=np.diff(ends_ms).tolist(), loop=0)


class FrameSink:
    """Context manager that feeds frames to an ffmpeg graph. The output file is removed on any error."""

    def __init__(self, output: Any, path: Path, height: int, width: int) -> None:
        """Compile the graph of the node `output`, which writes `path`, for frames of `height` x `width` pixels."""
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
        is_complete = False
        try:
            if error is None:
                self._finish()
                is_complete = True
        finally:
            stop(self._process)
            self._close_input()
            self._log.close()
            if not is_complete:
                self._path.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Wait for ffmpeg to write everything, and raise its error if it failed."""
        self._close_input()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            raise VideoError(f"ffmpeg took longer than {CLOSE_SECONDS:g} seconds to finish {self._path}") from None
        check_status(self._process.returncode, read_tail(self._log))

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        # If ffmpeg has failed, its exit status gives the reason.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class VideoWriter(FrameSink):
    """Context manager that writes an H.264 MP4."""

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
        """Prepare to write `path`. For crf (18 is visually lossless), preset and x264_params see `h264_options`.

        Raises:
            ValueError: width or height is odd, which yuv420p does not support, or not positive.
        """
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise ValueError(f"{path}: H.264 video needs even width and height, got {width}x{height}")
        frames = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps)
        # Players guess the colour space of untagged videos from their size, so convert to BT.709 and tag it.
        converted = frames.filter("scale", out_color_matrix="bt709", out_range="tv", flags=EXACT_SCALING)
        colours = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
        options = h264_options(crf=crf, preset=preset, x264_params=x264_params) | colours
        super().__init__(converted.output(str(path.absolute()), **options), path, height, width)
