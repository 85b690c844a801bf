"""Small models that are whole enough to predict raw video, made without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline_lib.backbones.weights import read_state_dict
from pipeline_lib.params import StreamParams, TrainParams
from pipeline_lib.predict.bundle import InputSpec, ModelBundle
from pipeline_lib.predict.predictor import Predictor
from pipeline_lib.streams.stream import Stream
from pipeline_lib.training.checkpoints import Metadata, save_checkpoint
from pipeline_lib.video.writing import VideoWriter
from tasks.mlflow.loading import Opened

CLASSES = ("jump", "sit", "wave")
FRAMES, GRID, IMAGE_SIZE, FPS = 6, 2, 32, 15.0
SMALL = TrainParams(alstm_units=8, conv_alstm_units=4, head_channels=4)


RGB = StreamParams(backbone="vgg_small", weights="random", image_size=IMAGE_SIZE, grid=GRID, precision="fp32")


def make_bundle(
    folder: Path, name: str = "alstm", *, seed: int = 0, frames: int = FRAMES, params: StreamParams = RGB
) -> ModelBundle:
    """Write a model of random weights, `name` its kind, over a stream whose random backbone `seed` decides."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = Stream(params.model_copy(update={"seed": seed}), clip_frames=frames, device=torch.device("cpu"))
    backbone = stream.encoder.backbone
    metadata = Metadata(
        classes=CLASSES,
        channels=backbone.channels,
        grid=GRID,
        params=SMALL.of(name).recipe(),
        features=stream.provenance,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = metadata.build()
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3)  # as they begin, all frames would look alike
    save_checkpoint(folder / "checkpoint.safetensors", network, metadata)
    weights = {key: value.contiguous() for key, value in backbone.extractor.state_dict().items()}
    save_file(weights, folder / "backbone.safetensors")
    input_spec = InputSpec(name=name, fps=FPS, crf=16, frames=frames)
    flow = None
    if params.method_weights:
        flow = folder / "flow.safetensors"
        save_file(read_state_dict(Path(params.method_weights)), flow)
    return ModelBundle(input_spec, folder / "checkpoint.safetensors", (folder / "backbone.safetensors",), (flow, None))


def make_opened(folder: Path, names: Sequence[str] = ("alstm", "conv_alstm", "mean_pool")) -> Opened:
    """Return models over one backbone, the first of which was asked for."""
    predictor = Predictor([make_bundle(folder / name, name) for name in names], device="cpu")
    return Opened(predictor, names[0], "a <small> model", None, "0" * 64)


def write_video(path: Path, num_frames: int, *, fps: float = 30, width: int = 64, height: int = 48) -> Path:
    """Write a bright square wandering over noise."""
    generator = np.random.default_rng(num_frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, width=width, height=height, fps=fps) as writer:
        for number in range(num_frames):
            frame = generator.integers(60, 120, (height, width, 3), dtype=np.uint8)
            left = int((width - 16) * (0.5 + 0.5 * np.sin(number / 9)))
            frame[8:24, left : left + 14] = (240, 200, 5 * number % 255)
            writer.write(frame)
    return path
