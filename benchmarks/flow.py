"""What a frame of a flow stream costs, step by step, and how exact optical flow methods are; in CPU time of one thread.

Shape suffixes: H W pixels of a frame, S side in pixels, C colour channels (3).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from benchmarks.__main__ import processor
from benchmarks.measuring import spread
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.params import StreamParams
from pipeline_lib.streams.flow.encoder import stack_flows
from pipeline_lib.streams.flow.encoding import encode_flow
from pipeline_lib.streams.flow.method import DecoderMethod, find_method
from pipeline_lib.streams.flow.opencv import import_opencv
from pipeline_lib.video import decode_worker

SIDE = StreamParams(input="flow").image_size
DIS_SIDE = find_method("dis").side_of(SIDE)
DIS_BOUND = StreamParams(input="flow").bound * DIS_SIDE / SIDE
STACK = 5
PAIRS = 24
"""For each motion."""
FEWER_PAIRS = {"tvl1": 4}
"""Pairs for slow methods."""
MOTIONS = ((3.0, 22.0), (6.0, 45.0), (12.0, 45.0))
"""Pixels of the largest known motion, and of the standard deviation of the filter that smooths it."""
PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

Method = Callable[[list[np.ndarray]], np.ndarray]
"""Returns the flow between two grey images."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", type=Path, help="folder of videos at 15 fps, as the subsample stage leaves them")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(options.videos.glob("*.mp4"))
    print_steps(paths, options.repeats)
    print_methods(paths)
    print(f"{processor()}, {num_cores()} cores, load {os.getloadavg()[0]:.0f}; OpenCV {cv2.__version__}")


def print_steps(paths: Sequence[Path], repeats: int) -> None:
    """Print the milliseconds a frame of each step, over several parts of the videos."""
    parts = [step_milliseconds(paths[first::repeats]) for first in range(min(repeats, len(paths)))]
    for step in parts[0]:
        print(f"{step}: {spread([part[step] for part in parts])} ms a frame", flush=True)


def step_milliseconds(paths: Sequence[Path]) -> dict[str, float]:
    """Return the CPU milliseconds a frame of each step in a decoder process, but for sending."""
    seconds = dict.fromkeys(STEPS, 0.0)
    num_frames = 0
    for path in paths:
        made: dict[str, list[Any]] = {"path": [path]}
        for step, (source, work) in STEPS.items():
            started = time.process_time()
            made[step] = work(made[source])
            seconds[step] += time.process_time() - started
        num_frames += len(made["decode"])
    return {step: 1000 * value / num_frames for step, value in seconds.items()}


def _decode(paths: list[Path]) -> list[av.VideoFrame]:
    with av.open(str(paths[0])) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return list(container.decode(video=0))


def _to_rgb(frames: list[av.VideoFrame]) -> list[np.ndarray]:
    reformatter = VideoReformatter()
    return [decode_worker._to_array(decode_worker._to_rgb(reformatter, frame, None)) for frame in frames]


def _reduce(grey_SS: np.ndarray) -> np.ndarray:
    """Return an image of the side that DIS takes."""
    image_SS: np.ndarray = cv2.resize(grey_SS, (DIS_SIDE, DIS_SIDE), interpolation=cv2.INTER_AREA)
    return image_SS


def _flows(method: str, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    found = find_method(method)
    assert isinstance(found, DecoderMethod)
    return list(found.open().start()(images))


STEPS: dict[str, tuple[str, Callable[[list[Any]], list[Any]]]] = {
    "decode": ("path", _decode),
    "to RGB": ("decode", _to_rgb),
    "to grey": ("to RGB", lambda frames: [cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY) for frame_HWC in frames]),
    "resize": ("to grey", lambda frames: [_reduce(cv2.resize(grey_HW, (SIDE, SIDE))) for grey_HW in frames]),
    "DIS": ("resize", lambda images: _flows("dis", images)),
    "encode, image": ("DIS", lambda flows: [encode_flow(flow_SS2, DIS_BOUND, magnitude=True) for flow_SS2 in flows]),
    "encode, x and y": ("DIS", lambda flows: [encode_flow(flow_SS2, DIS_BOUND, magnitude=False) for flow_SS2 in flows]),
    f"stack of {STACK}": ("encode, x and y", lambda flows: [stack_flows([flow_SS2] * STACK) for flow_SS2 in flows]),
}
"""Each step with the step whose results it takes."""


def print_methods(paths: Sequence[Path]) -> None:
    """Print the endpoint errors and the milliseconds a pair of OpenCV's methods, for known motions of several sizes."""
    candidates: dict[str, Method] = {f"DIS {name}": partial(_dis, preset) for name, preset in PRESETS.items()}
    candidates |= {"dis": _reduced_dis} | {name: partial(_flow, name) for name in ("farneback", "tvl1")}
    by_motion = {motion: list(warped_pairs(paths, *motion)) for motion in MOTIONS}
    for name, method in candidates.items():
        errors, milliseconds = [], []
        for pairs in by_motion.values():
            measured = [_measure(method, *pair) for pair in pairs[: FEWER_PAIRS.get(name, PAIRS)]]
            errors.append(statistics.mean(error for error, _ in measured))
            milliseconds += [value for _, value in measured]
        shown = ", ".join(f"{error:.3g} of {size:g}" for error, (size, _) in zip(errors, MOTIONS, strict=True))
        print(f"{name}: endpoint error in pixels, of the largest motion: {shown}; {spread(milliseconds)} ms a pair", flush=True)


def _dis(preset: int, pair: list[np.ndarray]) -> np.ndarray:
    flow_SS2: np.ndarray = import_opencv().DISOpticalFlow_create(preset).calc(*pair, None)
    return flow_SS2


def _reduced_dis(pair: list[np.ndarray]) -> np.ndarray:
    """Return the flow of `method: dis`, enlarged."""
    flow_SS2: np.ndarray = cv2.resize(_flow("dis", [_reduce(grey_SS) for grey_SS in pair]), (SIDE, SIDE))
    return flow_SS2 * (SIDE / DIS_SIDE)


def _flow(method: str, pair: list[np.ndarray]) -> np.ndarray:
    return _flows(method, pair)[0]


def _measure(method: Method, first_SS: np.ndarray, second_SS: np.ndarray, known_SS2: np.ndarray) -> tuple[float, float]:
    """Return the mean distance between found and known vectors, and the CPU milliseconds."""
    started = time.process_time()
    found_SS2 = method([first_SS, second_SS])
    milliseconds = 1000 * (time.process_time() - started)
    return float(np.linalg.norm(found_SS2 - known_SS2, axis=-1).mean()), milliseconds


def warped_pairs(paths: Sequence[Path], largest: float, sigma: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield real frames, warped by a known smooth flow: the warped frame, the frame, and the flow from one to the other.

    Args:
        paths: videos.
        largest: pixels of the largest motion in x or y.
        sigma: pixels, how smooth it is.
    """
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    for number in range(PAIRS):
        frames = _to_rgb(_decode([paths[number % len(paths)]]))
        frame_HWC = frames[generator.integers(len(frames))]
        second_SS = cv2.resize(cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY), (SIDE, SIDE))
        noise_SS2 = cv2.GaussianBlur(generator.normal(size=(SIDE, SIDE, 2)).astype(np.float32), (0, 0), sigma)
        known_SS2 = noise_SS2 * (largest / np.abs(noise_SS2).max())
        map_x, map_y = columns + known_SS2[..., 0], rows + known_SS2[..., 1]
        first_SS = cv2.remap(second_SS, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        yield first_SS, second_SS, known_SS2


if __name__ == "__main__":
    main()
