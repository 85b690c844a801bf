"""Evaluate a fusion on the test split from what its members' evaluations wrote; no model runs again."""

# M members, N clips, T frames of a clip, V videos, K grid side, I = K * K cells, C classes

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from pipeline_lib.artifacts import layout
from pipeline_lib.errors import UserError
from pipeline_lib.evaluate.box_scores import score_boxes
from pipeline_lib.evaluate.complementarity import Overlap, overlap_of_errors
from pipeline_lib.evaluate.evaluation import write_predictions, write_scores
from pipeline_lib.evaluate.fusion_fitting import VideoScores, fit_fusion
from pipeline_lib.evaluate.maps import ATTENTION, ScoredMaps, map_totals, write_maps
from pipeline_lib.evaluate.permutation import video_footage
from pipeline_lib.evaluate.pointing import find_actor
from pipeline_lib.evaluate.probabilities import SplitProbabilities, read_probabilities
from pipeline_lib.evaluate.scores import overall_scores
from pipeline_lib.params import FusionParams
from pipeline_lib.training.fusion import FittedFusion, fuse, fuse_attention, video_means


@dataclass(frozen=True)
class SplitScores:
    """All members' class probabilities on the clips of one split."""

    clips: pd.DataFrame
    """The split's clips; `group` is the footage."""
    classes: tuple[str, ...]
    members: Sequence[np.ndarray]
    """Each member's probability_NTC."""

    @property
    def valid_frames(self) -> np.ndarray:
        """Number of valid frames of each clip."""
        return self.clips["valid_frames"].to_numpy()

    @property
    def video_index(self) -> np.ndarray:
        """Index of each clip's video, in the order of the videos' first clips."""
        return pd.factorize(self.clips["video"])[0]

    def of_videos(self) -> VideoScores:
        """Return the members' mean probabilities of each video."""
        videos = self.clips.drop_duplicates("video")
        means = [video_means(member_NTC, self.valid_frames, self.video_index) for member_NTC in self.members]
        label_V = pd.Index(self.classes).get_indexer(pd.Index(videos["class_name"]))
        return VideoScores(np.stack(means), label_V, videos["group"].to_numpy())


def evaluate_fusion(
    members: Sequence[Path],
    clips: pd.DataFrame,
    directory: Path,
    params: FusionParams,
    *,
    fps: float,
    boxes: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Fit a fusion on the validation split, score it on the test split and return the metrics.

    Writes the files of `evaluate_model` (except probabilities.h5), and fusion.json with `members`, `method`, `fitted` (a
    `FittedFusion`) and `overlap` (an `Overlap`). maps.json has no deletion and insertion, which would run all members again.

    Args:
        members: folders that `evaluate_model` wrote, in the order of `params.members`.
        clips: table of all clips, with their split.
        directory: existing folder to write to.
        params: members and method.
        fps: frame rate of the clips.
        boxes: actor boxes to compare attention with; None to skip it.

    Raises:
        UserError: the members were tested on different clips or classes.
    """
    validation, test = read_split(members, params.members, clips, "val"), read_split(members, params.members, clips, "test")
    assert test, "an evaluation without test clips fails"
    fitted = fit_fusion(params, validation.of_videos() if validation else None)
    probability_NTC = fuse(fitted, test.members, test.valid_frames, test.video_index)
    maps = [_read_attention(folder) for folder in members]
    attention_NTKK = fuse_attention(fitted.weights, test.members, maps, probability_NTC.argmax(axis=2))
    predictions, videos = write_predictions(
        directory, test.clips, probability_NTC, _or_uniform(attention_NTKK, probability_NTC), test.classes
    )
    metrics = overall_scores(predictions, videos, test.classes, train=clips[clips["split"] == "train"])
    if attention_NTKK is not None:
        metrics |= _write_maps(directory, test, attention_NTKK, probability_NTC, boxes, fps)
    _write_fusion(directory, params, fitted, _overlap(members, videos))
    write_scores(directory, predictions, videos, test.classes, metrics, title=" + ".join(params.members))
    return metrics


def read_split(folders: Sequence[Path], names: Sequence[str], clips: pd.DataFrame, split: str) -> SplitScores | None:
    """Read all members' probabilities on a split; return None if it has no clips.

    Raises:
        UserError: the members were tested on different clips or classes.
    """
    found = [read_probabilities(folder, split) for folder in folders]
    known = [member for member in found if member]
    if not known:
        return None
    own = clips[clips["split"] == split].reset_index(drop=True)
    own["group"] = video_footage(own)
    for name, member in zip(names, found, strict=True):
        _check_member(name, member, known[0], own, split)
    return SplitScores(own, known[0].classes, [member.probability_NTC for member in known])


def _check_member(
    name: str, member: SplitProbabilities | None, first: SplitProbabilities, clips: pd.DataFrame, split: str
) -> None:
    same = member and member.clips == tuple(clips["clip"]) and member.classes == first.classes
    if not member or not same or member.probability_NTC.shape != first.probability_NTC.shape:
        raise UserError(
            f"{name}: its probabilities on the {split} split are of other clips or classes than the other members'; "
            "run with `--refresh evaluate`"
        )


def _read_attention(folder: Path) -> np.ndarray | None:
    """Return attention_NTKK of a model with attention maps, None for others, whose maps are an explainer's."""
    maps = folder / layout.MAPS
    if not maps.exists() or json.loads(maps.read_text(encoding="utf-8"))["kind"] != ATTENTION:
        return None
    with h5py.File(folder / layout.ATTENTION, "r") as file:
        maps_NTKK: np.ndarray = file["attention"][:]
    return maps_NTKK


def _or_uniform(attention_NTKK: np.ndarray | None, probability_NTC: np.ndarray) -> np.ndarray:
    """Return the attention, or for a fusion without any a map of one cell."""
    return np.ones((*probability_NTC.shape[:2], 1, 1), np.float32) if attention_NTKK is None else attention_NTKK


def _write_maps(
    directory: Path,
    test: SplitScores,
    attention_NTKK: np.ndarray,
    probability_NTC: np.ndarray,
    boxes: pd.DataFrame | None,
    fps: float,
) -> dict[str, Any]:
    """Write the measures of the fused maps that need no model, and return the metrics among them."""
    grid = attention_NTKK.shape[2]
    actor = None if boxes is None else find_actor(test.clips, attention_NTKK.shape[1], grid, boxes, fps=fps)
    attention_NTI = attention_NTKK.reshape(*attention_NTKK.shape[:2], -1).astype(np.float64)
    totals = map_totals(test.clips, attention_NTI, actor)
    scores = score_boxes(test.clips, attention_NTI, actor, probability_NTC, test.classes)
    maps = ScoredMaps(test.clips, test.classes, grid, totals, curves=None, boxes=scores)
    write_maps(directory, maps)
    return maps.pointing() | maps.localisation()


def _overlap(members: Sequence[Path], videos: pd.DataFrame) -> Overlap:
    tables = [pd.read_parquet(folder / layout.VIDEOS).set_index("video") for folder in members]
    correct_MV = np.stack([table.loc[videos["video"], "correct"].to_numpy(dtype=bool) for table in tables])
    return overlap_of_errors(correct_MV, videos["group"].to_numpy())


def _write_fusion(directory: Path, params: FusionParams, fitted: FittedFusion, overlap: Overlap) -> None:
    content = {
        "members": list(params.members),
        "method": params.method,
        "fitted": fitted.model_dump(mode="json"),
        "overlap": asdict(overlap),
    }
    (directory / layout.FUSION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_fusion(directory: Path) -> Mapping[str, Any] | None:
    """Read fusion.json; return None for the evaluation of a single model."""
    path = directory / layout.FUSION
    content: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return content
