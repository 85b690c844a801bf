"""What more GPUs of one machine are worth: extraction, and training of 3 folds and 5 seeds, with one GPU and with more.

`python -m benchmarks.several_gpus VIDEOS` starts a process for each case, in turns: one GPU with its share of the cores, one
GPU with all cores, and all GPUs with all cores. One GPU works in the process itself and several through Ray, as in `har run`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu import ARTICLE, clips_to_train_on, count_frames, extract, make_shards
from benchmarks.measuring import spread
from benchmarks.training import PLAIN_MODELS
from pipeline_lib.artifacts import layout
from pipeline_lib.compute.cores import core_numbers, num_cores
from pipeline_lib.compute.engine import open_engine, run_at
from pipeline_lib.compute.gpus import count_gpus
from pipeline_lib.compute.planning import training_needs
from pipeline_lib.features import SHARDS_ON_GPU
from pipeline_lib.params import ModelName, load_params
from pipeline_lib.train import train_model

FOLDS, SEEDS = 3, 5
EPOCHS = 4
TRAINING_SHARDS = 12
"""Shards whose features are trained on, about 1,500 videos."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, help="folder of videos at 15 fps, as the subsample stage leaves them")
    parser.add_argument("--frames", type=int, default=120_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # a case's own process: the folder of the shards
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.inside)))
        return
    gpus, cores = count_gpus(), num_cores()
    if gpus < 2:
        parser.error(f"several GPUs are compared with one, and this process sees {gpus} (CUDA_VISIBLE_DEVICES)")
    cases = [(1, cores // gpus), (1, cores), (gpus, cores)]
    found: dict[tuple[int, int], list[dict[str, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), options.videos, options.frames)
        print(f"{count_frames(shards)} frames in {len(shards)} shards; {gpus} GPUs, {cores} cores", flush=True)
        for repeat in range(options.repeats):
            for case in cases if repeat % 2 == 0 else reversed(cases):
                found[case].append(run_case(options.videos, Path(folder), *case))
                print(*case, json.dumps(found[case][-1]), flush=True)
    for what in found[cases[0]][0]:
        for case in cases:
            values = [one[what] for one in found[case]]
            print(f"{what}, {case[0]} GPU, {case[1]} cores: {spread(values)}")


def run_case(videos: Path, folder: Path, gpus: int, cores: int) -> dict[str, float]:
    """Return what a process with so many GPUs and cores measured."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count_gpus())))).split(",")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(visible[:gpus])}
    command = [sys.executable, "-m", "benchmarks.several_gpus", str(videos), "--inside", str(folder)]
    allowed = core_numbers()
    try:
        os.sched_setaffinity(0, allowed[:cores])  # the process inherits it
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        os.sched_setaffinity(0, allowed)
    return json.loads(output.splitlines()[-1])


def measure(folder: Path) -> dict[str, float]:
    """Return seconds and rates of this process's GPUs, all warmed up, and how busy the cores were."""
    shards = sorted(folder.glob("shard*"))
    gpus = count_gpus()
    with open_engine(is_local_ray=gpus > 1, num_gpus=gpus):
        extract(folder, shards[: SHARDS_ON_GPU * gpus])
        started, before = time.perf_counter(), psutil.cpu_times()
        extract(folder, shards)
        seconds = time.perf_counter() - started
        found = {"extraction, frames/s": count_frames(shards) / seconds, "its cores busy": cores_busy(before, seconds)}
        feature_files = [folder / "features" / shard.name / layout.FEATURES for shard in shards[:TRAINING_SHARDS]]
        for model in PLAIN_MODELS:
            train_all(model, feature_files, folder / "trained", epochs=1, seeds=2)  # compiles, on each GPU
            started, before = time.perf_counter(), psutil.cpu_times()
            train_all(model, feature_files, folder / "trained", epochs=EPOCHS, seeds=SEEDS)
            seconds = time.perf_counter() - started
            found |= {f"{model}, seconds": seconds, f"{model}, cores busy": cores_busy(before, seconds)}
    return found


def cores_busy(before: Any, seconds: float) -> float:
    """Return the mean number of the machine's cores that were busy since `before`, psutil's CPU times of then."""
    now = psutil.cpu_times()
    return sum(getattr(now, kind) - getattr(before, kind) for kind in ("user", "nice", "system")) / seconds


def train_all(model: ModelName, feature_files: list[Path], folder: Path, *, epochs: int, seeds: int) -> None:
    """Train three folds with so many seeds, all submitted at once, as the flow does."""
    clips = [clips_to_train_on(feature_files, fold) for fold in range(FOLDS)]
    train = load_params(ARTICLE).train.model_copy(update={"epochs": epochs, "patience": epochs})
    runs = [(fold, seed) for fold in range(FOLDS) for seed in range(seeds)]
    needs = training_needs("cuda", sum(file.stat().st_size for file in feature_files), len(runs), key="train.device")

    def one(run: tuple[int, int]) -> None:
        fold, seed = run
        directory = folder / f"{model}_{fold}_{seed}"
        directory.mkdir(parents=True, exist_ok=True)
        params = train.of(model, seed)
        run_at(train_model, clips[fold], feature_files, directory, None, params, needs=needs)

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(one, runs))


if __name__ == "__main__":
    main()
