"""How fast videos become frames, by the ways there are: `python -m benchmarks.decoding FOLDER`, a folder of MP4 files."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import ffmpeg
from av.video.reformatter import VideoReformatter

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.video.decoders import read_arrays
from pipeline_lib.video.ffmpeg import ffmpeg_path

Way = Callable[[Path], int]
"""Decodes a video to RGB in memory and returns the number of its frames."""

CHUNK = 4
"""Videos that a process is sent at once."""


def main() -> None:
    """Decode all videos of a folder in every way, with every core, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=1, help="how often each video is decoded")
    options = parser.parse_args()
    paths = sorted(options.folder.rglob("*.mp4")) * options.copies
    cores = num_cores()
    spawn = get_context("spawn")
    ways: list[tuple[str, Way, Executor]] = [
        ("a process of ffmpeg's program for each video", by_program, ThreadPoolExecutor(cores)),
        ("PyAV in threads of one process", by_pyav, ThreadPoolExecutor(cores)),
        ("PyAV in processes that keep their frames", by_pyav, ProcessPoolExecutor(cores, spawn)),
        ("PyAV in processes that hand over their frames (ours)", by_decoders, ThreadPoolExecutor(cores)),
    ]
    if importlib.util.find_spec("cv2"):
        ways.append(("OpenCV in threads of one process", by_opencv, ThreadPoolExecutor(cores)))
        ways.append(("OpenCV in processes that keep their frames", by_opencv, ProcessPoolExecutor(cores, spawn)))
    if importlib.util.find_spec("torchcodec"):
        ways.append(("torchcodec in threads of one process", by_torchcodec, ThreadPoolExecutor(cores)))
        ways.append(("torchcodec in processes that keep their frames", by_torchcodec, ProcessPoolExecutor(cores, spawn)))
    print(f"{len(paths)} videos, {cores} cores\n\n| way | frames/s |\n| --- | --- |")
    started = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        num_frames = sum(pool.map(by_one_program, [paths[first::cores] for first in range(cores)]))
    print(f"| one process of ffmpeg's program a core for all videos | {num_frames / (time.perf_counter() - started):,.0f} |")
    for name, way, executor in ways:
        with executor:
            _decode_all(executor, way, paths[: 2 * CHUNK * cores])  # starts every process
            started = time.perf_counter()
            num_frames = _decode_all(executor, way, paths)
            print(f"| {name} | {num_frames / (time.perf_counter() - started):,.0f} |", flush=True)


def _decode_all(executor: Executor, way: Way, paths: Sequence[Path]) -> int:
    return sum(executor.map(way, paths, chunksize=CHUNK))


def by_program(path: Path) -> int:
    """Start ffmpeg, read its pipe."""
    return by_one_program([path])


def by_one_program(paths: Sequence[Path]) -> int:
    """Start ffmpeg once for many videos of one size, read its pipe; where one video ends and the next begins is lost."""
    width, height = _size(paths[0])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as playlist:
        playlist.writelines(f"file '{path.absolute()}'\n" for path in paths)
        playlist.flush()
        frames = ffmpeg.input(playlist.name, format="concat", safe=0).output("pipe:", format="rawvideo", pix_fmt="rgb24")
        arguments = [ffmpeg_path(), "-v", "error", *frames.get_args()]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            num_frames = 0
            while len(process.stdout.read(3 * width * height)) == 3 * width * height:
                num_frames += 1
    return num_frames


def _size(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as container:
        return container.streams.video[0].width, container.streams.video[0].height


def by_pyav(path: Path) -> int:
    """Decode in this process."""
    reformatter, num_frames = VideoReformatter(), 0
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            reformatter.reformat(frame, format="rgb24", threads=1)
            num_frames += 1
    return num_frames


def by_decoders(path: Path) -> int:
    """Decode in a process that is kept."""
    return sum(map(len, read_arrays(path)))


def by_opencv(path: Path) -> int:
    """Decode in this process, by OpenCV's copy of FFmpeg."""
    cv2 = importlib.import_module("cv2")
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    num_frames = 0
    while video.read()[0]:
        num_frames += 1
    return num_frames


def by_torchcodec(path: Path) -> int:
    """Decode in this process into one tensor, by the FFmpeg that torchcodec finds among the system's libraries."""
    video = importlib.import_module("torchcodec.decoders").VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return len(video.get_frames_in_range(0, len(video)).data)


if __name__ == "__main__":
    main()
