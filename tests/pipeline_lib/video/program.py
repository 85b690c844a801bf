"""Decode by the ffmpeg program, whose frames are what PyAV's are compared with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline_lib.video.ffmpeg import ffmpeg_path


def program_pixels(path: Path, *, max_side: int | None = None, first_frame: int = 0) -> bytes:
    """Return the RGB pixels of all frames from `first_frame`, scaled down to `max_side`."""
    filters = [f"trim=start_frame={first_frame}"]
    if max_side:
        sides = f"'min(iw,{max_side})':'min(ih,{max_side})'"
        filters.append(f"scale={sides}:force_original_aspect_ratio=decrease:flags=bicubic")
    output = ["-vf", ",".join(filters), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
    arguments = [ffmpeg_path(), "-v", "error", "-nostdin", "-i", str(path), *output]
    return subprocess.run(arguments, check=True, capture_output=True).stdout
