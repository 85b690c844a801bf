"""Evaluate one checkpoint on every clip of the test split."""

# N clips, M clips that are masked, T frames of a clip, K grid side, I = K * K cells, C classes

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline_lib.artifacts import layout
from pipeline_lib.compute.devices import choose_device
from pipeline_lib.errors import UserError
from pipeline_lib.evaluate.box_scores import score_boxes
from pipeline_lib.evaluate.confusion import draw_confusion
from pipeline_lib.evaluate.explainers import EXPLAINERS, IN_PLACE_OF_ATTENTION, explain
from pipeline_lib.evaluate.flow_magnitude import flow_maps
from pipeline_lib.evaluate.maps import ATTENTION, ScoredMaps, curve_totals, map_totals, write_maps
from pipeline_lib.evaluate.masking import Curves, choose_clips, masked_curves, masked_features
from pipeline_lib.evaluate.measures import FLOW
from pipeline_lib.evaluate.permutation import video_footage
from pipeline_lib.evaluate.pointing import Actor, find_actor
from pipeline_lib.evaluate.predictions import clip_predictions, video_predictions
from pipeline_lib.evaluate.probabilities import write_probabilities
from pipeline_lib.evaluate.scores import class_scores, confusion_counts, overall_scores
from pipeline_lib.params import EvaluateParams
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.joined import JoinedReader, open_features, other_clips
from pipeline_lib.streams.steps import steps_of_frames
from pipeline_lib.training.batches import ClipLoader
from pipeline_lib.training.checkpoints import Metadata, load_checkpoint
from pipeline_lib.training.inference import Outputs, infer, infer_frames
from pipeline_lib.training.voting import tally, valid_mask

GPU_BATCH = 128
"""Minimum batch size on a GPU, in clips; smaller batches are launch-bound."""

FEATURES_MUST_AGREE = ("backbone", "weights_sha256", "preprocessing")


def evaluate_model(
    checkpoint: Path,
    clips: pd.DataFrame,
    feature_files: Sequence[Path],
    directory: Path,
    params: EvaluateParams,
    *,
    fps: float,
    boxes: pd.DataFrame | None = None,
    video_path: Callable[[str], Path] | None = None,
) -> dict[str, Any]:
    """Score a checkpoint on the whole test split of `clips` and return the metrics.

    Writes metrics.json, predictions.parquet, videos.parquet, per_class.csv, confusion.png and attention.h5, which for a model
    with attention over time also has `importance`. For maps of more than one cell it also writes maps.json, maps.parquet and
    with boxes tubes.parquet (see `pipeline_lib.evaluate.maps`), for a model without attention over cells those of an
    explainer's map. probabilities.h5 has the class probabilities on the val and test splits, for score fusion.

    Args:
        checkpoint: the model.
        clips: table of all clips, with their split.
        feature_files: files with the features of the val and test clips.
        directory: existing folder to write to.
        params: batch size, device, ...
        fps: frame rate of the clips.
        boxes: actor boxes (video, time_seconds, x0, y0, x1, y1) to compare attention with; None to skip it.
        video_path: returns the path of a subsampled video by its id, to compare attention with the flow in videos that have
            boxes; None to skip it.

    Raises:
        UserError: no test clips, a damaged checkpoint or feature file, or features that differ from those of the training.
    """
    network, metadata = load_checkpoint(checkpoint)
    test = clips[clips["split"] == "test"].reset_index(drop=True)
    test["group"] = video_footage(test)
    _check_classes(checkpoint, test, metadata)
    device = choose_device(params.device, key="evaluate.device")
    network = network.to(device)
    batch_size = max(params.batch_size, GPU_BATCH) if device.type == "cuda" else params.batch_size
    others = other_clips(clips, metadata.params["seed"]) if metadata.params.get("motion") == "shuffled" else None
    with open_features(feature_files, len(metadata.streams), others) as reader:
        _check_features(checkpoint, reader, metadata)
        loader_of = partial(ClipLoader, reader, classes=metadata.classes, device=device, in_memory=False)
        loader = loader_of(test)
        of_steps = infer(network, loader, batch_size)
        outputs = of_steps.of_frames(loader.step_frames, loader.num_frames)
        val = clips[clips["split"] == "val"]
        on_val = infer_frames(network, loader_of(val), batch_size) if len(val) else None
        maps = None
        if metadata.grid > 1:
            actor = None if boxes is None else find_actor(test, outputs.attention_NTKK.shape[1], metadata.grid, boxes, fps=fps)
            curves_of = partial(masked_curves, network, batch_size=batch_size, masked_D=masked_features(reader, clips))
            maps = _score_maps(network, curves_of, loader_of, test, of_steps, metadata, actor, video_path)
    for split, table, found in (("val", val, on_val), ("test", test, outputs)):
        if found:
            write_probabilities(directory, split, table["clip"].tolist(), metadata.classes, _probabilities(found))
    predictions, videos = write_predictions(
        directory,
        test,
        _probabilities(outputs),
        outputs.attention_NTKK.numpy(),
        metadata.classes,
        importance_NT=_importance(outputs, test["valid_frames"].to_numpy()) if metadata.attends_over_time else None,
        vote_last=params.vote_last,
    )
    train = clips[clips["split"] == "train"]
    metrics = overall_scores(predictions, videos, metadata.classes, train=train)
    if maps:
        write_maps(directory, maps)
        metrics |= maps.pointing() | maps.localisation()
    write_scores(directory, predictions, videos, metadata.classes, metrics, title=metadata.model)
    return metrics


def _score_maps(
    network: nn.Module,
    curves_of: Callable[..., Curves],
    loader_of: Callable[[pd.DataFrame], ClipLoader],
    test: pd.DataFrame,
    outputs: Outputs,
    metadata: Metadata,
    actor: Actor | None,
    video_path: Callable[[str], Path] | None,
) -> ScoredMaps:
    """Compute all measures of maps; deletion and insertion run the network again on masked features."""
    loader = loader_of(test)
    maps = _maps_of_steps(network, loader, outputs, metadata)
    kind = next(iter(maps))
    row_M = choose_clips(test)
    masked = test.iloc[row_M]
    curves = curves_of(loader_of(masked), masked["clip"].tolist(), _cells(maps[kind][row_M]))
    of_frames = {name: _cells(_of_frames(map_NTKK, loader)) for name, map_NTKK in maps.items()}
    main_NTI = of_frames.pop(kind)
    if actor and video_path:
        of_frames[FLOW] = flow_maps(test, loader.num_frames, metadata.grid, actor.clip_F, video_path)
    totals = pd.concat([map_totals(test, main_NTI, actor, of_frames), curve_totals(masked, curves)], ignore_index=True)
    probability_NTC = _probabilities(outputs.of_frames(loader.step_frames, loader.num_frames))
    boxes = score_boxes(test, main_NTI, actor, probability_NTC, metadata.classes, of_frames)
    return ScoredMaps(test, metadata.classes, metadata.grid, totals, curves, boxes, kind)


def _maps_of_steps(network: nn.Module, loader: ClipLoader, outputs: Outputs, metadata: Metadata) -> Mapping[str, torch.Tensor]:
    """Return the model's map_NTKK of steps, first the one to be checked: its attention, or an explainer's map."""
    names = list(EXPLAINERS) if metadata.attends else [IN_PLACE_OF_ATTENTION]
    explained = {name: explain(EXPLAINERS[name], network, loader) for name in names}
    return {ATTENTION: outputs.attention_NTKK} | explained if metadata.attends else explained


def _of_frames(map_NTKK: torch.Tensor, loader: ClipLoader) -> torch.Tensor:
    """Return each frame's map from those of steps, as `Outputs.of_frames` does."""
    return map_NTKK[:, torch.from_numpy(steps_of_frames(loader.step_frames, loader.num_frames))]


def _cells(map_NTKK: torch.Tensor) -> np.ndarray:
    map_NTI: np.ndarray = map_NTKK.flatten(2).double().numpy()
    return map_NTI


def _check_classes(checkpoint: Path, test: pd.DataFrame, metadata: Metadata) -> None:
    if test.empty:
        raise UserError("the test split has no clips; check the split files, or raise chunk.test_fraction")
    unknown = sorted(set(test["class_name"]) - set(metadata.classes))
    if unknown:
        raise UserError(
            f"{checkpoint}: the model was not trained on the class {unknown[0]!r} of the test split; train it again"
        )


def _check_features(checkpoint: Path, reader: FeatureReader | JoinedReader, metadata: Metadata) -> None:
    """Check that the features' size, backbone and preprocessing are those that the model was trained on."""
    _, _, grid, _, channels = reader.shape
    sizes = ({"grid": grid, "channels": channels}, {"grid": metadata.grid, "channels": metadata.channels})
    streams = zip(reader.provenance.get("streams", [reader.provenance]), metadata.streams, strict=True)
    for found, expected in (sizes, *streams):
        for name in ("grid", "channels", *FEATURES_MUST_AGREE):
            if found.get(name) != expected.get(name):
                raise UserError(
                    f"{checkpoint}: trained on features with {name} {expected.get(name)}, but these have {found.get(name)}; "
                    "run with `--refresh train`"
                )


def _probabilities(outputs: Outputs) -> np.ndarray:
    probability_NTC: np.ndarray = outputs.logits_NTC.softmax(dim=2).numpy()
    return probability_NTC


def _importance(outputs: Outputs, valid_frames_N: np.ndarray) -> np.ndarray:
    """Return importance_NT that sums to 1 over the valid frames of each clip; frames of one step share it equally."""
    importance_NT = outputs.importance_NT.numpy()
    importance_NT = importance_NT * valid_mask(valid_frames_N, importance_NT.shape[1])
    shared_NT: np.ndarray = importance_NT / importance_NT.sum(axis=1, keepdims=True)
    return shared_NT


def write_predictions(
    directory: Path,
    test: pd.DataFrame,
    probability_NTC: np.ndarray,
    attention_NTKK: np.ndarray,
    classes: Sequence[str],
    *,
    importance_NT: np.ndarray | None = None,
    vote_last: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write, and return, the predictions for each clip and video; also write attention and importance in clip order."""
    clip_tally = tally(probability_NTC, test["valid_frames"].to_numpy(), vote_last)
    predictions = clip_predictions(test, probability_NTC, clip_tally, classes)
    videos = video_predictions(predictions, clip_tally, classes)
    predictions.to_parquet(directory / layout.PREDICTIONS, index=False)
    videos.to_parquet(directory / layout.VIDEOS, index=False)
    with h5py.File(directory / layout.ATTENTION, "w") as file:
        attention = file.create_dataset("attention", data=attention_NTKK, track_times=False)
        attention.attrs["axes"] = "clip,frame,row,column"
        if importance_NT is not None:
            importance = file.create_dataset("importance", data=importance_NT, track_times=False)
            importance.attrs["axes"] = "clip,frame"
        file.create_dataset("clip", data=test["clip"].tolist(), dtype=h5py.string_dtype(), track_times=False)
    return predictions, videos


def write_scores(
    directory: Path,
    predictions: pd.DataFrame,
    videos: pd.DataFrame,
    classes: Sequence[str],
    metrics: dict[str, Any],
    *,
    title: str,
) -> None:
    """Write metrics.json, the scores of each class, and the confusion matrix, whose title starts with `title`."""
    counts_CC = confusion_counts(predictions, classes)
    class_scores(predictions, videos, classes).to_csv(directory / layout.PER_CLASS, index=False)
    title = f"{title}: {metrics['clip_accuracy']:.1%} of {metrics['num_clips']} test clips right"
    draw_confusion(directory / "confusion.png", counts_CC, classes, title=title)
    (directory / layout.METRICS).write_text(json.dumps(metrics, indent=2), encoding="utf-8")
