"""Training steps at the demo's size: the train stage, and the plainest loop over frames in fp32.

Shape suffixes: N clips, B batch, T frames of a clip, K grid side, D channels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.collection import Shards
from benchmarks.extraction import FPS
from benchmarks.measuring import Comparison, compare
from benchmarks.plain_models import PlainALSTM, PlainConvALSTM
from pipeline_lib.chunk import cut_clips
from pipeline_lib.features import FeatureReader, extract_features
from pipeline_lib.models.batches import ClipSource
from pipeline_lib.models.registry import build_model
from pipeline_lib.models.reproducibility import reproducible
from pipeline_lib.params import ModelName, ModelParams, Params, load_params
from pipeline_lib.train.loss import frame_cross_entropy
from pipeline_lib.train.trainer import Trainer, count_correct

DEMO = Path(__file__).parents[1] / "params" / "demo.yaml"
PLAIN_MODELS: dict[ModelName, Callable[..., nn.Module]] = {"alstm": PlainALSTM, "conv_alstm": PlainConvALSTM}
AS_THE_ARTICLE = {"scorer": "pooled", "rescale_glimpse": False, "head_channels": None, "normalise": False}
"""What the plain models compute."""
EPOCHS = 5
CPU = torch.device("cpu")


def compare_training(shards: Shards, directory: Path) -> Iterator[Comparison]:
    """Compare epochs over features in memory, without validation and files."""
    demo = load_params(DEMO)
    features = demo.features.model_copy(update={"device": "cpu"})
    extract_features(shards.long, directory, features, demo.chunk, fps=FPS)
    clips = _whole_batches(shards.long, demo)
    classes = sorted(clips["class_name"].unique())
    with FeatureReader([directory / "features.h5"]) as reader:
        source = ClipSource(reader, clips, classes, CPU, in_memory=True)
        for model in PLAIN_MODELS:
            yield _compare_model(source, len(classes), demo.train.model_copy(update=AS_THE_ARTICLE).of(model))


def _whole_batches(shard: Path, demo: Params) -> pd.DataFrame:
    clips = cut_clips(pd.read_parquet(shard / "videos.parquet"), demo.chunk)
    assert len(clips) >= demo.train.batch_size, "more clips than a batch"
    return clips.head(len(clips) - len(clips) % demo.train.batch_size)


def _compare_model(source: ClipSource, num_classes: int, params: ModelParams) -> Comparison:
    whole = next(source.batches(len(source)))
    _, frames, grid, _, channels = whole.features_BTKKD.shape
    sizes = {"channels": channels, "grid": grid, "num_classes": num_classes}
    features_NTKKD = whole.features_BTKKD.float()
    plain = PLAIN_MODELS[params.model](**sizes, units=params.units, dropout=params.dropout)
    optimizer = torch.optim.Adam(plain.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    trainer = Trainer(build_model(params, **sizes), CPU, params, source, source)

    def usual(epochs: int = EPOCHS) -> None:
        for _ in range(epochs):
            _train_as_usual(plain, optimizer, features_NTKKD, whole.labels_B, whole.valid_frames_B, params.batch_size)

    def ours(epochs: int = EPOCHS) -> None:
        generator = torch.Generator().manual_seed(params.seed)
        with reproducible(params.seed, deterministic=params.deterministic):
            for epoch in range(1, epochs + 1):
                trainer.train_epoch(epoch, generator)

    usual(1)
    ours(1)
    size = f"{grid}x{grid}x{channels}, T {frames}, B {params.batch_size}, {params.units} units"
    steps = EPOCHS * len(source) // params.batch_size
    return compare(f"{params.model} training step, {size}", "steps/s", steps, usual=usual, ours=ours)


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
        labels_B, valid_frames_B = labels_N[chosen_B], valid_frames_N[chosen_B]
        logits_BTC = network(features_NTKKD[chosen_B], valid_frames_B)
        loss = frame_cross_entropy(logits_BTC, labels_B, valid_frames_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
        total_correct += int(count_correct(logits_BTC.detach(), labels_B, valid_frames_B)[0])
    return total_loss, total_correct
