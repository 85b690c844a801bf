"""Whole trainings of ALSTM on a CPU, with the loop that NumPy computes and with autograd's, in turns.

Shape suffixes: N frames, K grid side, D channels.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.measuring import spread
from pipeline_lib.features.hdf5 import SAME_IN_ALL, FeatureWriter
from pipeline_lib.models.alstm import ALSTM
from pipeline_lib.params import ModelParams, TrainParams, load_params
from pipeline_lib.train import train_model

REPEATS, FRAMES, GRID, CLASSES = 4, 30, 7, 7
DEMO = load_params(Path(__file__).parents[1] / "params" / "demo.yaml").train
SIZES = {
    "demo, 7x7x128, 128 units": (DEMO.of("alstm").model_copy(update={"patience": 99, "epochs": 4}), 128, 112, 32),
    "VGG, 7x7x512, 256 units": (TrainParams(epochs=3, patience=99).of("alstm"), 512, 64, 24),
}
STEPS = ALSTM._steps
WAYS = {"autograd": lambda *_: None, "numpy": STEPS}


def main() -> None:
    """Measure and print."""
    for threads, (name, size) in itertools.product((1, 2), SIZES.items()):
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            compare(f"{name}, {threads} threads", Path(folder), *size)


def compare(name: str, folder: Path, params: ModelParams, channels: int, train: int, val: int) -> None:
    """Train in turns; print seconds of the training and of its epochs, and the ratios."""
    clips = write_features(folder, channels, train, val)
    seconds: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for way in WAYS:
        run(way, folder, clips, params.model_copy(update={"epochs": 1}))
    for repeat in range(REPEATS):
        for way in list(WAYS)[:: 1 - 2 * (repeat % 2)]:
            seconds[way].append(run(way, folder, clips, params))
            print(name, way, [round(one, 2) for one in seconds[way][-1]], flush=True)
    for what, values in enumerate(("whole", "CPU of whole", "epochs")):
        rows = {way: [pair[what] for pair in pairs] for way, pairs in seconds.items()}
        ratios = [slow / fast for slow, fast in zip(rows["autograd"], rows["numpy"], strict=True)]
        print(f"{name}, {values}: {', '.join(f'{way} {spread(s)} s' for way, s in rows.items())}: {spread(ratios)}", flush=True)


def run(way: str, folder: Path, clips: pd.DataFrame, params: ModelParams) -> tuple[float, ...]:
    """Return the seconds of a whole training, of all cores in it, and of its epochs."""
    ALSTM._steps = WAYS[way]  # type: ignore[method-assign, assignment]
    epochs: list[float] = []
    began, began_cpu = time.perf_counter(), time.process_time()
    train_model(clips, [folder / "features.h5"], folder, None, params, on_epoch=lambda row: epochs.append(row["seconds"]))
    return time.perf_counter() - began, time.process_time() - began_cpu, sum(epochs)


def write_features(folder: Path, channels: int, train: int, val: int) -> pd.DataFrame:
    """Write random features of a ReLU's kind, and return their clips."""
    number = train + val
    clips = pd.DataFrame({"clip": [f"c{index}" for index in range(number)], "first_frame": 0, "valid_frames": FRAMES})
    clips["video"], clips["class_name"] = clips["clip"], [f"class{index % CLASSES}" for index in range(number)]
    clips["part"] = ["train"] * train + ["val"] * (val - CLASSES) + ["test"] * CLASSES
    random = np.random.default_rng(0)
    with FeatureWriter(folder / "features.h5", clips, frame_shape=(GRID, GRID, channels), frames=FRAMES) as writer:
        writer.describe(dict.fromkeys((*SAME_IN_ALL, "precision", "tool_versions"), "{}"))
        for _ in range(number):
            features_NKKD = np.maximum(random.standard_normal((FRAMES, GRID, GRID, channels), np.float32), 0)
            writer.append(features_NKKD.astype(np.float16))
    return clips


if __name__ == "__main__":
    main()
