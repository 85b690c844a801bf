"""Twenty training steps of every model against losses on file: a change that moves them is meant, or is a mistake.

Write the file anew after a change that is meant: python -m tests.pipeline_lib.train.test_golden
"""

# N clips, T frames of a clip, K grid side, D channels

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.networks.normalisation import Normalised
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import MODELS, TrainParams
from pipeline_lib.train.trainer import Trainer
from pipeline_lib.training.batches import Batch
from tests.pipeline_lib.networks.sizes import split_channels

LOSSES = Path(__file__).parent / "golden" / "losses.csv"
STEPS, CLIPS, FRAMES, GRID, CHANNELS, CLASSES = 20, 16, 30, 4, 12, 5
PARAMS = TrainParams(alstm_units=16, conv_alstm_units=8, attention_penalty=0.5, device="cpu")


def make_batch(step: int) -> Batch:
    rng = np.random.default_rng(step)
    labels_N = rng.integers(0, CLASSES, CLIPS)
    features_NTKKD = np.maximum(rng.normal(0, 1, (CLIPS, FRAMES, GRID, GRID, CHANNELS)), 0)
    for clip, label in enumerate(labels_N):
        features_NTKKD[clip, :, label % GRID, :, label] += 1
    valid_frames_N = rng.integers(1, FRAMES + 1, CLIPS)
    return Batch(torch.from_numpy(features_NTKKD).half(), torch.from_numpy(valid_frames_N), torch.from_numpy(labels_N))


def take_steps(model: str) -> list[float]:
    """Return the loss of each step, computed in fp32 whatever the processor gains from."""
    params = PARAMS.of(model)
    with reproducible(params.seed, deterministic=True):
        network = build_model(params, channels=split_channels(model, CHANNELS), grid=GRID, num_classes=CLASSES)
        assert isinstance(network, Normalised)
        network.measure(make_batch(step) for step in range(3))
        trainer = Trainer(network, torch.device("cpu"), params, train=None, val=None)
        trainer.autocast = torch.autocast("cpu", enabled=False)
        sums = [trainer.step(make_batch(step)).tolist() for step in range(STEPS)]
    return [loss / num_frames for loss, _, num_frames, _ in sums]


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("model", MODELS)
def test_losses_are_those_on_file(model):
    with LOSSES.open(newline="") as file:
        wanted = [float(row[model]) for row in csv.DictReader(file)]
    losses = take_steps(model)
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert len(set(losses)) == STEPS


def write() -> None:
    columns = {model: take_steps(model) for model in MODELS}
    with LOSSES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([f"{loss:.8f}" for loss in row] for row in zip(*columns.values(), strict=True))


if __name__ == "__main__":
    write()
