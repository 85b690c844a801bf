"""Predict videos with the same steps as the pipeline: the same frames, features, clips and votes.

Shape suffixes: B windows of a batch, T frames (of a video or of a window), S steps of a window, K grid side,
D feature channels, C classes.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline_lib.compute.devices import choose_device
from pipeline_lib.compute.gpu_sharing import deterministic_inference
from pipeline_lib.errors import UserError
from pipeline_lib.params import Device, SubsampleParams
from pipeline_lib.predict.bundle import InputSpec, ModelBundle
from pipeline_lib.predict.frame_means import FrameMeans
from pipeline_lib.predict.fusion import Bundle, FusionBundle, fuse_predictions, open_bundle
from pipeline_lib.predict.prediction import ModelPrediction, Prediction
from pipeline_lib.streams.steps import nearest_steps, steps_of_frames, valid_steps
from pipeline_lib.streams.stream import Span, Stream, params_of, share, wanted_of
from pipeline_lib.streams.windows import Window, window_starts
from pipeline_lib.subsample import SubsampledVideo, subsample_video
from pipeline_lib.training.checkpoints import Metadata, load_checkpoint
from pipeline_lib.video.decoders import read_images
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import probe

BATCH_WINDOWS = 16
"""Windows per batch."""

MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 300.0, 6 * 3600.0
"""Bounds of ffmpeg's timeout, which is the maximum duration of a video."""

OnProgress = Callable[[int, int], None]
"""Called with the number of frames done and the total."""


@dataclass(frozen=True)
class _Model:
    """A loaded model, and the keys of the streams that it reads."""

    network: nn.Module
    metadata: Metadata
    streams: tuple[str, ...]


class Predictor:
    """Predict videos with models of one run, which may read different streams, and with fusions; `predict` is thread-safe."""

    def __init__(self, bundles: Iterable[Bundle], device: Device = "auto") -> None:
        """Load models that share an input specification, and fusions with their members. Their files are not used afterwards.

        Raises:
            UserError: a file is missing or damaged, or the models do not read the same clips.
        """
        bundles = list(bundles)
        assert bundles, "no models"
        self.device = choose_device(device, key="device")
        self._input_spec = bundles[0].members[0].input_spec
        self._models: dict[str, _Model] = {}
        self._streams: dict[str, Stream] = {}
        for bundle in bundles:
            for model in bundle.members:
                if model.name not in self._models:
                    self._add(model)
        self.main = bundles[0].name
        """Name of the first model or fusion: the one that was asked for."""
        self._fusions = {bundle.name: bundle.spec for bundle in bundles if isinstance(bundle, FusionBundle)}

    def _add(self, bundle: ModelBundle) -> None:
        """Load a model, and open its stream if no other model reads it."""
        name, first = bundle.input_spec.name, self._input_spec
        if bundle.input_spec.model_copy(update={"name": first.name}) != first:
            raise UserError(f"{name}: trained on clips of another kind than {first.name}; load it alone")
        network, metadata = load_checkpoint(bundle.checkpoint)
        keys = tuple(map(_stream_key, metadata.streams))
        flows = bundle.flows[: len(keys)]
        for key, provenance, backbone, flow in zip(keys, metadata.streams, bundle.backbones, flows, strict=True):
            if key not in self._streams:
                self._streams[key] = _open_stream(bundle.input_spec, provenance, backbone, flow, self.device)
        self._models[name] = _Model(network.to(self.device).eval(), metadata, keys)

    @classmethod
    def load(cls, folder: Path, device: Device = "auto") -> Predictor:
        """Load the model or fusion from a folder that its bundle's `save` wrote.

        Raises:
            UserError: the folder has no model, or a damaged one.
        """
        return cls([open_bundle(folder)], device)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models and fusions."""
        return (*self._models, *self._fusions)

    @property
    def fps(self) -> float:
        """Frame rate of subsampled videos."""
        return self._input_spec.fps

    def classes(self, model: str) -> tuple[str, ...]:
        """Return the class names of a model or fusion in the order of its probabilities."""
        return self._models[self._members(model)[0]].metadata.classes

    def attends(self, model: str) -> bool:
        """Return whether a model, or a member of a fusion, computes attention."""
        return any(self._models[member].metadata.attends for member in self._members(model))

    def _members(self, model: str) -> tuple[str, ...]:
        return self._fusions[model].members if model in self._fusions else (model,)

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
            on_progress: called as windows pass through the backbones.

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
        span = Span(window_starts(num_frames, frames, overlap), num_frames)
        with closing(self._windows(subsampled, span, on_progress)) as windows:
            while batch := list(islice(windows, BATCH_WINDOWS)):
                self._infer(batch, probability, attention)
        maps = {name: means.mean() for name, means in attention.items()}
        models = {
            name: ModelPrediction(self.classes(name), means.mean(), maps.get(name)) for name, means in probability.items()
        }
        models |= {name: fuse_predictions(spec, models) for name, spec in self._fusions.items()}
        return Prediction(self.fps, info, models)

    def _subsample(self, video: Path, destination: Path, max_seconds: float | None) -> SubsampledVideo:
        limit = math.inf if max_seconds is None else max_seconds
        _check_duration(probe(video).seconds, limit)
        timeout_seconds = min(MAX_TIMEOUT_SECONDS, max(MIN_TIMEOUT_SECONDS, limit))
        params = SubsampleParams(fps=self._input_spec.fps, crf=self._input_spec.crf, timeout_seconds=timeout_seconds)
        info = subsample_video(video, destination, params)
        _check_duration(info.num_frames / self.fps, limit)
        return info

    def _windows(self, video: Path, span: Span, on_progress: OnProgress | None) -> Generator[dict[str, Window], None, None]:
        """Yield each window's features_SKKD (fp16) of every stream, computed like those of the training."""
        with ExitStack() as stack:
            windows: dict[str, Iterator[Window]] = {}
            for side in {stream.decoded_side for stream in self._streams.values()}:
                alike = {key: stream for key, stream in self._streams.items() if stream.decoded_side == side}
                images = read_images(video, wanted_of(alike.values()), max_side=side)
                stack.enter_context(closing(images))  # type: ignore[type-var]  # a generator
                branches = share(images, [stream.wanted for stream in alike.values()])
                for (key, stream), branch in zip(alike.items(), branches, strict=True):
                    windows[key] = stream.windows(branch, span)
            for of_streams in zip(*windows.values(), strict=True):
                yield dict(zip(windows, of_streams, strict=True))
                if on_progress:
                    on_progress(of_streams[0].first_frame + of_streams[0].valid_frames, span.num_frames)

    @torch.inference_mode()
    def _infer(
        self, windows: list[dict[str, Window]], probability: Mapping[str, FrameMeans], attention: Mapping[str, FrameMeans]
    ) -> None:
        features = {key: self._features(key, windows) for key in self._streams}
        for name, model in self._models.items():
            first = model.streams[0]
            step_frames, of_stream = self._streams[first].step_frames, [window[first] for window in windows]
            valid_B = torch.from_numpy(valid_steps(step_frames, [window.valid_frames for window in of_stream]))
            others = [features[key][:, nearest_steps(self._streams[key].step_frames, step_frames)] for key in model.streams[1:]]
            features_BSKKD = torch.cat([features[first], *others], dim=-1) if others else features[first]
            with deterministic_inference(self.device):
                outputs = model.network(features_BSKKD, valid_B.to(self.device))
            logits_BSC, attention_BSKK = (output.cpu() for output in outputs[:2])
            steps_T = steps_of_frames(step_frames, self._input_spec.frames)
            _add(probability[name], of_stream, logits_BSC.softmax(dim=2).numpy()[:, steps_T])
            if name in attention:
                _add(attention[name], of_stream, attention_BSKK.numpy()[:, steps_T])

    def _features(self, stream: str, windows: list[dict[str, Window]]) -> torch.Tensor:
        """Return features_BSKKD (fp32) of a stream's windows on the device."""
        return torch.from_numpy(np.stack([window[stream].values for window in windows])).to(self.device).float()


def _add(means: FrameMeans, windows: Iterable[Window], values_BT: np.ndarray) -> None:
    for window, values_T in zip(windows, values_BT, strict=True):
        means.add(window.first_frame, values_T[: window.valid_frames])


def _check_duration(seconds: float, limit: float) -> None:
    if seconds > limit:  # False for nan, an undeclared duration
        raise VideoError(f"{seconds:.0f} s long, longer than the {limit:g} s allowed here")


def _stream_key(provenance: Mapping[str, Any]) -> str:
    """Return a text that is equal for models that read the same stream."""
    names = ("backbone", "weights_sha256", "preprocessing", "precision")
    return json.dumps([provenance[name] for name in names], sort_keys=True)


def _open_stream(
    input_spec: InputSpec, provenance: Mapping[str, Any], backbone: Path, flow: Path | None, device: torch.device
) -> Stream:
    """Open the stream that a model was trained on.

    Raises:
        UserError: the backbone's weights are missing or others, or this version prepares frames in another way.
    """
    if not backbone.is_file():
        raise UserError(f"{backbone}: the backbone's weights are missing")
    params = params_of(provenance, device)
    stream = Stream(params, clip_frames=input_spec.frames, device=device, weights_file=backbone, flow_weights=flow)
    trained, found = (
        {"weights_sha256": each["weights_sha256"], **each["preprocessing"]} for each in (provenance, stream.provenance)
    )
    if others := sorted(key for key in trained | found if trained.get(key) != found.get(key)):
        differences = ", ".join(f"{key} {trained.get(key)}, now {found.get(key)}" for key in others)
        raise UserError(f"{input_spec.name}: trained on other features than are made here ({differences}); train it again")
    return stream
