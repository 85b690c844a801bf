"""From a video file to what models say of it, by the pipeline's own steps: the same frames, features, clips and votes.

Shape suffixes: B windows at once, T frames (of a video, or of a window), K grid side, D feature channels, C classes.
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
from pipeline_lib.compute.gpu import deterministic_inference
from pipeline_lib.errors import UserError
from pipeline_lib.params import Device, SubsampleParams
from pipeline_lib.predict.bundle import ModelBundle, Preparation
from pipeline_lib.predict.windows import FrameMeans, Window, cut_windows, window_starts
from pipeline_lib.streams.encoding import FrameEncoder, batches, decoded_side, default_batch
from pipeline_lib.subsample import SubsampledVideo, subsample_video
from pipeline_lib.training.checkpoints import Metadata, load_checkpoint
from pipeline_lib.training.voting import Tally, tally
from pipeline_lib.video.decoders import read_arrays
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import probe

WINDOWS_AT_ONCE = 16
"""Windows a model sees together; with VGG16's features 75 MB."""

TOP = 5
SHORTEST_SECONDS, LONGEST_SECONDS = 300.0, 6 * 3600.0
"""Bounds of the time that ffmpeg may take over a video: as long as the longest video that is allowed."""

OnProgress = Callable[[int, int], None]
"""Called with the frames done and the frames there are."""


@dataclass(frozen=True)
class ModelPrediction:
    """What one model says of a video."""

    classes: tuple[str, ...]
    probability_TC: np.ndarray
    """Of every frame, float32."""
    attention_TKK: np.ndarray | None
    """Of every frame, float32; None if the model has none."""

    @cached_property
    def _tally(self) -> Tally:
        return tally(self.probability_TC[None], np.array([len(self.probability_TC)]))

    @property
    def label(self) -> str:
        """The class most frames vote for; evaluation's `predicted`."""
        return self.classes[self._tally.predicted[0]]

    @property
    def confidence(self) -> float:
        """Its mean probability."""
        return float(self._tally.confidence[0])

    @property
    def label_by_mean(self) -> str:
        """The class of the largest mean probability; evaluation's `predicted_by_mean`."""
        return self.classes[self._tally.predicted_by_mean[0]]

    @property
    def confidence_by_mean(self) -> float:
        """That largest mean probability."""
        return float(self._tally.confidence_by_mean[0])

    @property
    def top(self) -> list[tuple[str, float]]:
        """The five classes of the largest mean probability, and it."""
        mean_C = self._tally.probability_NC[0] / len(self.probability_TC)
        return [(self.classes[index], float(mean_C[index])) for index in np.argsort(-mean_C, kind="stable")[:TOP]]

    @property
    def frame_labels(self) -> list[str]:
        """The most probable class of every frame."""
        return [self.classes[index] for index in self.probability_TC.argmax(axis=1)]

    @property
    def frame_confidence(self) -> list[float]:
        """Its probability."""
        return [float(value) for value in self.probability_TC.max(axis=1)]


@dataclass(frozen=True)
class Prediction:
    """What models say of a video."""

    fps: float
    """Rate of the frames."""
    video: SubsampledVideo
    models: Mapping[str, ModelPrediction]


class Predictor:
    """Models over one backbone, ready to predict. Several threads may call `predict` at once."""

    def __init__(self, parts: Iterable[ModelBundle], device: Device = "auto") -> None:
        """Load models that share a backbone and the way videos are prepared; their files are not needed afterwards.

        Raises:
            UserError: a part is missing or damaged, or does not fit the others.
        """
        parts = list(parts)
        assert parts, "no model to predict with"
        self.device = choose_device(device, key="device")
        self._preparation = parts[0].preparation
        self._models: dict[str, tuple[nn.Module, Metadata]] = {}
        for part in parts:
            network, metadata = load_checkpoint(part.checkpoint)
            self._models[part.preparation.name] = network.to(self.device).eval(), metadata
        self._encoder = _load_encoder(parts[0], self._models[self.models[0]][1], self.device)
        for part in parts:
            self._check_alike(part.preparation, self._models[part.preparation.name][1])

    @classmethod
    def load(cls, folder: Path, device: Device = "auto") -> Predictor:
        """Load the one model of a folder that `ModelBundle.save` wrote.

        Raises:
            UserError: it holds none, or a damaged one.
        """
        return cls([ModelBundle.of_folder(folder)], device)

    @property
    def models(self) -> tuple[str, ...]:
        """The models' names."""
        return tuple(self._models)

    @property
    def fps(self) -> float:
        """Rate that videos are brought to."""
        return self._preparation.fps

    def classes(self, model: str) -> tuple[str, ...]:
        """What a model tells apart, in the order of its probabilities."""
        return self._models[model][1].classes

    def attends(self, model: str) -> bool:
        """Whether a model's attention means anything."""
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
        """Predict a video of any length; memory holds a few windows of it, and a row a frame of results.

        Args:
            video: any file that ffmpeg reads.
            overlap: share of a clip that the next one repeats; their probabilities are averaged. 0: as in evaluation.
            subsampled: where the video is written at the models' rate (an MP4 with the very frames that are seen);
                default: into a temporary file.
            max_seconds: refuse longer videos.
            on_progress: called as frames pass through the backbone, which takes most of the time.

        Raises:
            VideoError: the video cannot be decoded, or is too long.
            UserError: `overlap` is not a share.
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
        frames, num_frames = self._preparation.frames, info.num_frames
        probability = {name: FrameMeans(num_frames) for name in self._models}
        attention = {name: FrameMeans(num_frames) for name in self._models if self.attends(name)}
        starts = window_starts(num_frames, frames, overlap)
        with closing(self._features(subsampled, num_frames, on_progress)) as features:
            windows = cut_windows(features, starts, num_frames=num_frames, frames=frames)
            while batch := list(islice(windows, WINDOWS_AT_ONCE)):
                self._infer(batch, probability, attention)
        maps = {name: means.mean() for name, means in attention.items()}
        models = {
            name: ModelPrediction(self.classes(name), means.mean(), maps.get(name)) for name, means in probability.items()
        }
        return Prediction(self.fps, info, models)

    def _subsample(self, video: Path, destination: Path, max_seconds: float | None) -> SubsampledVideo:
        limit = math.inf if max_seconds is None else max_seconds
        _refuse_longer(probe(video).seconds, limit)
        timeout_seconds = min(LONGEST_SECONDS, max(SHORTEST_SECONDS, limit))
        params = SubsampleParams(fps=self._preparation.fps, crf=self._preparation.crf, timeout_seconds=timeout_seconds)
        info = subsample_video(video, destination, params)
        _refuse_longer(info.num_frames / self.fps, limit)
        return info

    def _features(self, video: Path, num_frames: int, on_progress: OnProgress | None) -> Generator[np.ndarray, None, None]:
        """Yield features_NKKD of the frames as feature files hold them: fp16, computed in the precision of the training's."""
        done = 0
        arrays = read_arrays(video, max_side=decoded_side(self._encoder.image_size))
        for batch in batches(arrays, self._encoder.batch_frames):
            for encoded in self._encoder.encode(batch):
                features_NKKD = encoded.wait()
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

    def _check_alike(self, preparation: Preparation, metadata: Metadata) -> None:
        """Refuse a model that was trained on other features than this predictor's encoder gives."""
        name, first = preparation.name, self._preparation
        found = {"weights_sha256": self._encoder.backbone.weights_sha256, "preprocessing": self._encoder.preprocessing}
        for key, value in found.items():
            if metadata.features[key] != value:
                raise UserError(
                    f"{name}: trained on features whose {key} is {metadata.features[key]}, the backbone's is {value}"
                )
        if preparation.model_copy(update={"name": first.name}) != first:
            raise UserError(f"{name}: trained on clips cut in another way than those of {first.name}; load it alone")


def _add(means: FrameMeans, windows: Iterable[Window], values_BT: np.ndarray) -> None:
    for window, values_T in zip(windows, values_BT, strict=True):
        means.add(window.first_frame, values_T[: window.valid_frames])


def _refuse_longer(seconds: float, limit: float) -> None:
    if seconds > limit:  # nan, where a file does not tell, is not
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
    """Return the precision of the features that the model was trained on; for fp16 a CPU, slow at it, takes the better fp32."""
    name = trained.split(", ", maxsplit=1)[0]
    return torch.float32 if name == "fp16" and device.type == "cpu" else PRECISIONS[name]
