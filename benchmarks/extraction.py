"""Features of every frame of a shard: the features stage, and one video at a time in fp32.

Shape suffixes: N frames, C colour channels (3), H W pixels, D feature channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.models import VGG16_Weights, vgg16

from benchmarks.collection import Shards
from benchmarks.measuring import Comparison, compare
from pipeline_lib.artifacts import layout
from pipeline_lib.features import extract_features
from pipeline_lib.params import ChunkParams, StreamParams
from pipeline_lib.video.reading import read_frames

PARAMS = StreamParams(backbone="vgg16", weights="random", image_size=224, device="cpu")
FPS = 15.0


def compare_extraction(shards: Shards, directory: Path) -> Comparison:
    """Compare from the files of the subsample stage to finished feature files; networks are built beforehand."""
    num_videos, num_frames = _count(shards.short)
    usual = _usual_way()

    def ours(shard: Path) -> object:
        return extract_features(shard, {"rgb": directory}, {"rgb": PARAMS}, ChunkParams(), fps=FPS)

    usual(shards.warm_up, directory)
    ours(shards.warm_up)
    return compare(
        f"VGG16 features of {num_frames} frames, {num_videos} videos, {PARAMS.image_size}x{PARAMS.image_size}",
        "frames/s",
        num_frames,
        usual=lambda: usual(shards.short, directory),
        ours=lambda: ours(shards.short),
    )


def _count(shard: Path) -> tuple[int, int]:
    videos = pd.read_parquet(shard / "videos.parquet")
    assert videos["reason"].isna().all(), "every film decodes"
    return len(videos), int(videos["num_frames"].sum())


def _usual_way() -> Callable[[Path, Path], None]:
    """Return what torchvision's documentation leads to: its network in fp32, its own transforms, one video at a time."""
    network = vgg16(weights=None).features.eval()
    transforms = VGG16_Weights.IMAGENET1K_V1.transforms()

    @torch.inference_mode()
    def encode(frames: list[np.ndarray]) -> np.ndarray:
        frames_NCHW = torch.stack([transforms(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames])
        features: list[Tensor] = [network(batch_NCHW) for batch_NCHW in frames_NCHW.split(64)]
        features_NDHW: np.ndarray = torch.cat(features).numpy()
        return features_NDHW

    def extract(shard: Path, directory: Path) -> None:
        for number, video in enumerate(pd.read_parquet(shard / "videos.parquet")["video"]):
            frames = list(read_frames(layout.subsampled_path(shard, video)))
            np.save(directory / f"{number}.npy", encode(frames))

    return extract
