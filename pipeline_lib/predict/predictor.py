"""Predict videos with the same steps as the pipeline: the same frames, features, clips and votes.

Shape suffixes: B windows of a batch, T frames (of a video or of a window), K grid side, D feature channels, C classes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.compute.devices import PRECISIONS, choose_device
from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.errors import UserError
from pipeline_lib.params import Device, SubsampleParams
from pipeline_lib.predict.bundle import InputSpec, ModelBundle
from pipeline_lib.predict.windows import FrameMeans, Window, cut_windows, window_starts
from pipeline_lib.streams.encoding import FrameEncoder, batches, decoded_side, default_batch
from pipeline_lib.subsample import SubsampledVideo, subsample_video
from pipeline_lib.training.checkpoints import Metadata, load_checkpoint
from pipeline_lib.training.voting import Tally, tally
from pipeline_lib.video.decoders import read_arrays
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import probe

BATCH_WINDOWS = 16
"""Windows per batch."""

TOP = 5
MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 300.0, 6 * 3600.0
"""Bounds of ffmpeg's timeout, which is the maximum duration of a video."""

OnProgress = Callable[[int, int], None]
"""Called with the number of frames done and the total."""


@dataclass(frozen=True)
class ModelPrediction:
    """One model's prediction of a video."""

    classes: tuple[str, ...]
    probability_TC: np.ndarray
    """Class probabilities of every frame, float32."""
    attention_TKK: np.ndarray | None
    """Attention of every frame, float32; None for a model without attention."""

    @cached_property
    def _tally(self) -> Tally:
        return tally(self.probability_TC[None], np.array([len(self.probability_TC)]))

    @property
    def label(self) -> str:
        """The class that most frames vote for; `predicted` in evaluation."""
        return self.classes[self._tally.predicted[0]]

    @property
    def confidence(self) -> float:
        """Mean probability of `label`."""
        return float(self._tally.confidence[0])

    @property
    def label_by_mean(self) -> str:
        """The class with the largest mean probability; `predicted_by_mean` in evaluation."""
        return self.classes[self._tally.predicted_by_mean[0]]

    @property
    def confidence_by_mean(self) -> float:
        """Mean probability of `label_by_mean`."""
        return float(self._tally.confidence_by_mean[0])

    @property
    def top(self) -> list[tuple[str, float]]:
        """The five classes with the largest mean probabilities, with these."""
        mean_C = self._tally.probability_NC[0] / len(self.probability_TC)
        return [(self.classes[index], float(mean_C[index])) for index in np.argsort(-mean_C, kind="stable")[:TOP]]

    @property
    def frame_labels(self) -> list[str]:
        """The most probable class of every frame."""
        return [self.classes[index] for index in self.probability_TC.argmax(axis=1)]

    @property
    def frame_confidence(self) -> list[float]:
        """Probability of each frame's most probable class."""
        return [float(value) for value in self.probability_TC.max(axis=1)]


@dataclass(frozen=True)
class Prediction:
    """The predictions of all models for a video."""

    fps: float
    """Frame rate of the subsampled video."""
    video: SubsampledVideo
    models: Mapping[str, ModelPrediction]


class Predictor:
    """Predict videos with models that share a backbone; `predict` is thread-safe."""

    def __init__(self, bundles: Iterable[ModelBundle], device: Device = "auto") -> None:
        """Load models that share a backbone and an input specification. Their files are not used afterwards.

        Raises:
            UserError: a file is missing or damaged, or the models do not share their inputs.
        """
        bundles = list(bundles)
        assert bundles, "no models"
        self.device = choose_device(device, key="device")
        self._input_spec = bundles[0].input_spec
        self._models: dict[str, tuple[nn.Module, Metadata]] = {}
        for bundle in bundles:
            network, metadata = load_checkpoint(bundle.checkpoint)
            self._models[bundle.input_spec.name] = network.to(self.device).eval(), metadata
        self._encoder = _load_encoder(bundles[0], self._models[self.models[0]][1], self.device)
        for bundle in bundles:
            self._check_inputs(bundle.input_spec, self._models[bundle.input_spec.name][1])

    @classmethod
    def load(cls, folder: Path, device: Device = "auto") -> Predictor:
        """Load the model from a folder that `ModelBundle.save` wrote.

        Raises:
            UserError: the folder has no model, or a damaged one.
        """
        return cls([ModelBundle.of_folder(folder)], device)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self._models)

    @property
    def fps(self) -> float:
        """Frame rate of subsampled videos."""
        return self._input_spec.fps

    def classes(self, model: str) -> tuple[str, ...]:
        """Return a model's class names in the order of its probabilities."""
        return self._models[model][1].classes

    def attends(self, model: str) -> bool:
        """Return whether a model computes attention."""
        return self._models[model][1].attends

    def predict(
        self,
        video: Path,
        *,
        overlap: float = 0.0,
        subsampled: Path | None = None,
        max_seconds: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Prediction:
        """Predict a video of any length. Only a few windows of it are in memory at a time.

        Args:
            video: any file that ffmpeg can read.
            overlap: fraction of a clip that the next one repeats, whose probabilities are averaged. Evaluation uses 0.
            subsampled: path to write the subsampled video to (an MP4); default: a temporary file.
            max_seconds: maximum duration of the video.
            on_progress: called as frames pass through the backbone.

        Raises:
            VideoError: the video cannot be decoded, or is too long.
            UserError: `overlap` is not between 0 and 1.
        """
        if not 0 <= overlap < 1:
            raise UserError(f"overlap = {overlap:g}: must be 0 or more, and less than 1")
        if subsampled is None:
            with tempfile.TemporaryDirectory(prefix="har-") as folder:
                return self._predict(video, Path(folder) / "subsampled.mp4", overlap, max_seconds, on_progress)
        return self._predict(video, subsampled, overlap, max_seconds, on_progress)

    def _predict(
        self, video: Path, subsampled: Path, overlap: float, max_seconds: float | None, on_progress: OnProgress | None
    ) -> Prediction:
        info = self._subsample(video, subsampled, max_seconds)
        frames, num_frames = self._input_spec.frames, info.num_frames
        probability = {name: FrameMeans(num_frames) for name in self._models}
        attention = {name: FrameMeans(num_frames) for name in self._models if self.attends(name)}
        starts = window_starts(num_frames, frames, overlap)
        with closing(self._features(subsampled, num_frames, on_progress)) as features:
            windows = cut_windows(features, starts, num_frames=num_frames, frames=frames)
            while batch := list(islice(windows, BATCH_WINDOWS)):
                self._infer(batch, probability, attention)
        maps = {name: means.mean() for name, means in attention.items()}
        models = {
            name: ModelPrediction(self.classes(name), means.mean(), maps.get(name)) for name, means in probability.items()
        }
        return Prediction(self.fps, info, models)

    def _subsample(self, video: Path, destination: Path, max_seconds: float | None) -> SubsampledVideo:
        limit = math.inf if max_seconds is None else max_seconds
        _check_duration(probe(video).seconds, limit)
        timeout_seconds = min(MAX_TIMEOUT_SECONDS, max(MIN_TIMEOUT_SECONDS, limit))
        params = SubsampleParams(fps=self._input_spec.fps, crf=self._input_spec.crf, timeout_seconds=timeout_seconds)
        info = subsample_video(video, destination, params)
        _check_duration(info.num_frames / self.fps, limit)
        return info

    def _features(self, video: Path, num_frames: int, on_progress: OnProgress | None) -> Generator[np.ndarray, None, None]:
        """Yield features_NKKD (fp16) of the frames, computed like those of the training."""
        done = 0
        arrays = read_arrays(video, max_side=decoded_side(self._encoder.image_size))
        for batch in batches(arrays, self._encoder.batch_frames):
            for features in self._encoder.encode(batch):
                features_NKKD = features.wait()
                done += len(features_NKKD)
                if on_progress:
                    on_progress(done, num_frames)
                yield features_NKKD

    @torch.inference_mode()
    def _infer(self, windows: list[Window], probability: Mapping[str, FrameMeans], attention: Mapping[str, FrameMeans]) -> None:
        features_BTKKD = torch.from_numpy(np.stack([window.frames_T for window in windows])).to(self.device).float()
        valid_B = torch.tensor([window.valid_frames for window in windows], device=self.device)
        for name, (network, _) in self._models.items():
            with deterministic_inference(self.device):
                outputs = network(features_BTKKD, valid_B)
            logits_BTC, attention_BTKK = (output.cpu() for output in outputs)
            _add(probability[name], windows, logits_BTC.softmax(dim=2).numpy())
            if name in attention:
                _add(attention[name], windows, attention_BTKK.numpy())

    def _check_inputs(self, input_spec: InputSpec, metadata: Metadata) -> None:
        """Check that a model's features and input specification are those of this predictor."""
        name, first = input_spec.name, self._input_spec
        found = {"weights_sha256": self._encoder.backbone.weights_sha256, "preprocessing": self._encoder.preprocessing}
        for key, value in found.items():
            if metadata.features[key] != value:
                raise UserError(
                    f"{name}: trained on features with {key} {metadata.features[key]}, but the backbone has {value}; "
                    "load the model alone"
                )
        if input_spec.model_copy(update={"name": first.name}) != first:
            raise UserError(f"{name}: trained on clips of another kind than {first.name}; load it alone")


def _add(means: FrameMeans, windows: Iterable[Window], values_BT: np.ndarray) -> None:
    for window, values_T in zip(windows, values_BT, strict=True):
        means.add(window.first_frame, values_T[: window.valid_frames])


def _check_duration(seconds: float, limit: float) -> None:
    if seconds > limit:  # False for nan, an undeclared duration
        raise VideoError(f"{seconds:.0f} s long, longer than the {limit:g} s allowed here")


def _load_encoder(bundle: ModelBundle, metadata: Metadata, device: torch.device) -> FrameEncoder:
    features = metadata.features
    image_size = features["preprocessing"]["image_size"]
    backbone = build_backbone(
        features["backbone"], "random", grid=metadata.grid, seed=0, weights_file=_existing(bundle.backbone)
    )
    return FrameEncoder(
        backbone,
        image_size=image_size,
        batch_frames=default_batch(device, image_size),
        device=device,
        precision=_precision(features["precision"], device),
    )


def _existing(backbone: Path) -> Path:
    if not backbone.is_file():
        raise UserError(f"{backbone}: the backbone's weights are missing")
    return backbone


def _precision(trained: str, device: torch.device) -> torch.dtype:
    """Return the precision of the training's features; on a CPU fp32 replaces fp16, which is slow there."""
    name = trained.split(", ", maxsplit=1)[0]
    return torch.float32 if name == "fp16" and device.type == "cpu" else PRECISIONS[name]
