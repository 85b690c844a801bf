"""CPU time of subsampling a video: by one ffmpeg, and by four with x264's preset `fast`.

Shape suffixes: T frames, H W pixels, 3 colours.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measuring import Comparison, compare
from pipeline_lib.params import SubsampleParams
from pipeline_lib.subsample import subsample_video
from pipeline_lib.subsample.videos import frames_at
from pipeline_lib.video.ffmpeg import run
from pipeline_lib.video.reading import count_frames, probe, read_frames
from pipeline_lib.video.writing import h264_options

Way = Callable[[Path, Path], None]
"""Subsamples a video into a file."""

PARAMS = SubsampleParams()
MOST_FRAMES = 160
"""Longest video that is subsampled, so that they have 90 frames in the mean, as those of HMDB-51."""


def compare_subsampling(source: Path, directory: Path) -> Comparison:
    """Compare on the videos at 30 fps below `source`: CPU seconds of this process and those it starts."""
    videos = [video for video in sorted(source.rglob("*.avi")) if count_frames(video) <= MOST_FRAMES]
    ways = {name: directory / f"{name}.mp4" for name in ("usual", "ours")}
    usual_db, usual_kb = _quality(videos, usual_way, ways["usual"])
    ours_db, ours_kb = _quality(videos, ours, ways["ours"])
    qualities = f"{usual_db:.1f} dB and {usual_kb:.0f} kB a video, ours {ours_db:.1f} and {ours_kb:.0f}"
    return compare(
        f"subsampling {len(videos)} videos ({qualities})",
        "videos/core-s",
        len(videos),
        usual=partial(_subsample_all, videos, usual_way, ways["usual"]),
        ours=partial(_subsample_all, videos, ours, ways["ours"]),
        clock=cpu_seconds,
    )


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def usual_way(source: Path, destination: Path) -> None:
    """Look at the file, transcode it, count the result's frames by decoding them, look at the result."""
    probe(source)
    options = h264_options(crf=PARAMS.crf, preset="fast") | {"tune": "fastdecode"}
    output = frames_at(source, PARAMS.fps).output(str(destination), **options).overwrite_output()
    run(output, timeout_seconds=PARAMS.timeout_seconds)
    count_frames(destination)
    probe(destination)


def ours(source: Path, destination: Path) -> None:
    """Subsample as the stage does."""
    subsample_video(source, destination, PARAMS)


def _subsample_all(videos: list[Path], way: Way, destination: Path) -> None:
    for video in videos:
        way(video, destination)


def _quality(videos: list[Path], way: Way, destination: Path) -> tuple[float, float]:
    """Return the mean PSNR in dB against the frames that stay, and the mean size in kB."""
    psnr, sizes = [], []
    for video in videos:
        way(video, destination)
        sizes.append(destination.stat().st_size / 1000)
        frames_THW3 = np.array(list(read_frames(destination)), np.float32)
        kept_THW3 = np.array(list(read_frames(video))[::2], np.float32)
        psnr.append(10 * np.log10(255**2 / np.square(frames_THW3 - kept_THW3).mean()))
    return statistics.fmean(psnr), statistics.fmean(sizes)
