"""Training steps at the demo's size: the train stage, and the plainest loop over frames in fp32.

Shape suffixes: N clips, B batch, T frames of a clip, K grid side, D channels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.collection import Shards
from benchmarks.extraction import FPS
from benchmarks.measuring import Comparison, compare
from benchmarks.plain_models import PlainALSTM, PlainConvALSTM
from pipeline_lib.chunk import cut_clips
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.compute.devices import keep_freed_memory
from pipeline_lib.compute.engine import open_engine, run_at
from pipeline_lib.compute.planning import training_needs
from pipeline_lib.features import FeatureReader, extract_features
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import ModelName, ModelParams, Params, load_params
from pipeline_lib.train.loss import frame_cross_entropy
from pipeline_lib.train.trainer import Trainer, count_correct
from pipeline_lib.training.batches import ClipLoader

DEMO = Path(__file__).parents[1] / "params" / "demo.yaml"
PLAIN_MODELS: dict[ModelName, Callable[..., nn.Module]] = {"alstm": PlainALSTM, "conv_alstm": PlainConvALSTM}
AS_THE_ARTICLE = {"scorer": "pooled", "rescale_glimpse": False, "head_channels": None, "normalise": False}
"""What the plain models compute."""
EPOCHS = 5
CPU = torch.device("cpu")


def compare_training(shards: Shards, directory: Path) -> Iterator[Comparison]:
    """Compare epochs over features in memory, without validation and files: of one training, and of one for each core."""
    demo = load_params(DEMO)
    rgb = demo.features.all_streams["rgb"].model_copy(update={"device": "cpu", "weights": "random"})
    extract_features(shards.long, {"rgb": directory}, {"rgb": rgb}, demo.chunk, fps=FPS)
    clips = _whole_batches(shards.long, demo)
    keep_freed_memory()  # as the train stage does; both ways gain by it
    for model in PLAIN_MODELS:
        params = demo.train.model_copy(update=AS_THE_ARTICLE).of(model)
        yield _compare_one(directory / "features.h5", clips, params)
        yield _compare_several(directory / "features.h5", clips, params)


def _whole_batches(shard: Path, demo: Params) -> pd.DataFrame:
    clips = cut_clips(pd.read_parquet(shard / "videos.parquet"), demo.chunk)
    assert len(clips) >= demo.train.batch_size, "more clips than a batch"
    return clips.head(len(clips) - len(clips) % demo.train.batch_size)


def _compare_one(file: Path, clips: pd.DataFrame, params: ModelParams) -> Comparison:
    usual, ours = UsualTraining(file, clips, params), OurTraining(file, clips, params)
    usual.run(1)
    ours.run(1)
    steps = EPOCHS * len(clips) // params.batch_size
    return compare(f"{params.model} training step, {usual.size}", "steps/s", steps, usual=usual.run, ours=ours.run)


def _compare_several(file: Path, clips: pd.DataFrame, params: ModelParams) -> Comparison:
    """As many training runs as cores: the usual way one after the other, ours at once, in Ray's processes, as the flow does."""
    number = num_cores()
    usual = UsualTraining(file, clips, params)
    with open_engine(is_local_ray=True), ThreadPoolExecutor(number) as callers:
        needs = training_needs("cpu", file.stat().st_size, number, key="train.device")

        def ours(epochs: int = EPOCHS) -> None:
            list(callers.map(lambda _: run_at(train_ours, file, clips, params, epochs, needs=needs), range(number)))

        usual.run(1)
        ours(1)
        steps = number * EPOCHS * len(clips) // params.batch_size
        subject = f"the same, {number} training runs: one after the other, side by side"
        return compare(subject, "steps/s", steps, usual=lambda: usual.run(number * EPOCHS), ours=ours)


def train_ours(file: Path, clips: pd.DataFrame, params: ModelParams, epochs: int) -> None:
    """Train in a worker process, which keeps what it has built for the next call."""
    keep_freed_memory()
    if params not in _kept:
        _kept[params] = OurTraining(file, clips, params)
    _kept[params].run(epochs)


_kept: dict[ModelParams, OurTraining] = {}


class OurTraining:
    """The train stage's epochs over features in memory."""

    def __init__(self, file: Path, clips: pd.DataFrame, params: ModelParams) -> None:
        classes = sorted(clips["class_name"].unique())
        with FeatureReader([file]) as reader:
            source = ClipLoader(reader, clips, classes, CPU, in_memory=True)
            _, _, grid, _, channels = reader.shape
        network = build_model(params, channels=channels, grid=grid, num_classes=len(classes))
        self._params, self._trainer = params, Trainer(network, CPU, params, source, source)

    def run(self, epochs: int = EPOCHS) -> None:
        """Visit every clip so many times."""
        generator = torch.Generator().manual_seed(self._params.seed)
        with reproducible(self._params.seed, deterministic=self._params.deterministic):
            for epoch in range(1, epochs + 1):
                self._trainer.train_epoch(epoch, generator)


class UsualTraining:
    """The plainest loop over frames in fp32, over features in memory."""

    def __init__(self, file: Path, clips: pd.DataFrame, params: ModelParams) -> None:
        classes = sorted(clips["class_name"].unique())
        with FeatureReader([file]) as reader:
            source = ClipLoader(reader, clips, classes, CPU, in_memory=True)
        self._whole, self._params = next(source.batches(len(source))), params
        self._features_NTKKD = self._whole.features_BTKKD.float()
        _, frames, grid, _, channels = self._features_NTKKD.shape
        self.size = f"{grid}x{grid}x{channels}, T {frames}, B {params.batch_size}, {params.units} units"
        sizes = {"channels": channels, "grid": grid, "num_classes": len(classes)}
        self._network = PLAIN_MODELS[params.model](**sizes, units=params.units, dropout=params.dropout)
        self._optimizer = torch.optim.Adam(
            self._network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay
        )

    def run(self, epochs: int = EPOCHS) -> None:
        """Visit every clip so many times."""
        for _ in range(epochs):
            _train_as_usual(
                self._network,
                self._optimizer,
                self._features_NTKKD,
                self._whole.labels_B,
                self._whole.valid_steps_B,
                self._params.batch_size,
            )


def _train_as_usual(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    features_NTKKD: torch.Tensor,
    labels_N: torch.Tensor,
    valid_frames_N: torch.Tensor,
    batch_size: int,
) -> tuple[float, int]:
    """Visit every clip once; return the sums of loss and right answers, as one would print them."""
    network.train()
    total_loss, total_correct = 0.0, 0
    for chosen_B in torch.randperm(len(labels_N)).split(batch_size):
        labels_B, valid_steps_B = labels_N[chosen_B], valid_frames_N[chosen_B]
        logits_BTC = network(features_NTKKD[chosen_B], valid_steps_B)
        loss = frame_cross_entropy(logits_BTC, labels_B, valid_steps_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
        total_correct += int(count_correct(logits_BTC.detach(), labels_B, valid_steps_B)[0])
    return total_loss, total_correct
