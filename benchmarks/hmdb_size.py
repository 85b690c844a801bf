"""Makes a collection of HMDB-51's size, names, container and packing from other footage. `python -m benchmarks.hmdb_size`.

6,766 MPEG-4 AVI files of 320x240 pixels at 30 fps with HMDB-51's names, packed as a RAR of one RAR a class. Each is a random
cut, crop and flip of one of the given videos: classes mean nothing, but decoding and encoding cost what they cost for real.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg

from demo.rar import pack_collection, write_rar
from pipeline_lib.compute.cores import num_cores

WIDTH, HEIGHT, FPS = 320, 240, 30
MASTER_WIDTH, MASTER_HEIGHT, MASTER_SECONDS = 480, 360, 12
"""Footage is brought to this size and length once, since most of it is cut from many times."""
MEAN_LOG, SD_LOG, SHORTEST, LONGEST = 4.38, 0.55, 18, 600
"""Frames at 30 fps: log-normal with HMDB-51's mean of about 91, within its extremes."""
VIDEOS_RAR, SPLITS_RAR = "hmdb51_org.rar", "test_train_splits.rar"


def main() -> None:
    """Make the collection, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("footage", type=Path, help="folder of videos to cut from")
    parser.add_argument("splits", type=Path, help="folder of HMDB-51's split files")
    parser.add_argument("folder", type=Path, help=f"where {VIDEOS_RAR} and {SPLITS_RAR} go")
    parser.add_argument("--videos", type=int, help="make only this many, spread over the classes")
    options = parser.parse_args()
    if (options.folder / VIDEOS_RAR).is_file() and (options.folder / SPLITS_RAR).is_file():
        print(f"{options.folder}: already made")
        return
    started = time.monotonic()
    names = hmdb51_names(options.splits)
    names = names[:: max(1, len(names) // options.videos)] if options.videos else names
    num_frames = make_videos(options.footage, names, options.folder)
    pack(options.folder, options.splits)
    print(f"{len(names)} videos, {num_frames} frames, in {time.monotonic() - started:.0f} s")


def hmdb51_names(splits: Path) -> list[tuple[str, str]]:
    """Return (class, video file) of every line of the first fold's split files."""
    return sorted(
        (path.name.rsplit("_test_split", 1)[0], line.split()[0])
        for path in splits.glob("*_test_split1.txt")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    )


def make_videos(footage: Path, names: Sequence[tuple[str, str]], folder: Path) -> int:
    """Write `folder/videos/<class>/<video>` for each name, and return the number of frames."""
    sources = sorted(path for path in footage.rglob("*") if path.suffix in (".mp4", ".avi"))
    with ThreadPoolExecutor(num_cores()) as pool:
        masters = list(pool.map(lambda source: _make_master(source, folder / "masters" / f"{source.name}.avi"), sources))
        return sum(pool.map(lambda number: _make_video(number, names[number], masters, folder / "videos"), range(len(names))))


def _make_master(source: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    video = ffmpeg.input(str(source), stream_loop=-1, t=MASTER_SECONDS).video
    _run(video.filter("scale", MASTER_WIDTH, MASTER_HEIGHT).filter("fps", FPS), path, quality=2)
    return path


def _make_video(number: int, name: tuple[str, str], masters: Sequence[Path], folder: Path) -> int:
    rng = random.Random(number)
    num_frames = int(min(LONGEST, max(SHORTEST, rng.lognormvariate(MEAN_LOG, SD_LOG))))
    path = folder / name[0] / name[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = (round(size * rng.uniform(0.4, 0.9)) for size in (MASTER_WIDTH, MASTER_HEIGHT))
    x, y = rng.randrange(MASTER_WIDTH - width), rng.randrange(MASTER_HEIGHT - height)
    video = ffmpeg.input(str(rng.choice(masters)), stream_loop=-1, ss=f"{rng.uniform(0, 4):.2f}").video
    video = video.filter("crop", width, height, x, y).filter("scale", WIDTH, HEIGHT).filter("setsar", 1)
    _run(video.filter("hflip") if rng.random() < 0.5 else video, path, quality=4, vframes=num_frames)
    return num_frames


def _run(video: Any, path: Path, *, quality: int, **options: Any) -> None:
    output = video.output(str(path), vcodec="mpeg4", threads=1, fflags="+bitexact", **{"q:v": quality}, **options)
    command = output.overwrite_output().compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    subprocess.run([command[0], "-v", "error", "-threads", "1", "-filter_threads", "1", *command[1:]], check=True)


def pack(folder: Path, splits: Path) -> None:
    """Pack videos and split files as HMDB-51 is packed."""
    pack_collection(folder, folder / VIDEOS_RAR)
    members = [(f"testTrainMulti_7030_splits/{path.name}", path) for path in sorted(splits.glob("*.txt"))]
    write_rar(folder / SPLITS_RAR, members)


if __name__ == "__main__":
    main()
