"""Fusion bundles: the bundles of several models, and how their class probabilities are combined.

A fusion's folder holds `fusion.json` (a `FusionSpec`) and one model bundle per member in `member_0`, `member_1`, ...
"""

# T frames of a video, C classes, K grid side

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline_lib.artifacts import digest, layout
from pipeline_lib.errors import UserError
from pipeline_lib.predict.bundle import ModelBundle
from pipeline_lib.predict.prediction import ModelPrediction
from pipeline_lib.training.fusion import FittedFusion, fuse, fuse_attention


class FusionSpec(BaseModel):
    """How a fusion combines its members."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    name: str
    """Name of the fusion in its run."""
    members: tuple[str, ...]
    """Names of the members' bundles, in the order of the weights."""
    fitted: FittedFusion


@dataclass(frozen=True)
class FusionBundle:
    """The files of a fusion."""

    spec: FusionSpec
    members: tuple[ModelBundle, ...]

    @classmethod
    def of_members(cls, name: str, fitted: FittedFusion, members: Sequence[ModelBundle]) -> FusionBundle:
        """Return the bundle of a fusion that was fitted to these members, in this order."""
        names = tuple(member.input_spec.name for member in members)
        return cls(FusionSpec(name=name, members=names, fitted=fitted), tuple(members))

    @classmethod
    def of_folder(cls, folder: Path) -> FusionBundle:
        """Return the bundle that `save` wrote.

        Raises:
            UserError: the folder has no fusion, or a member is missing or is another model.
        """
        spec = _read_spec(folder / layout.FUSION)
        members = tuple(ModelBundle.of_folder(_member(folder, number)) for number in range(len(spec.members)))
        for number, (name, member) in enumerate(zip(spec.members, members, strict=True)):
            if member.input_spec.name != name:
                raise UserError(f"{_member(folder, number)}: holds {member.input_spec.name}, but {spec.name} needs {name}")
        return cls(spec, members)

    def save(self, folder: Path) -> None:
        """Copy all files to an existing folder."""
        (folder / layout.FUSION).write_text(self.spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for number, member in enumerate(self.members):
            _member(folder, number).mkdir()
            member.save(_member(folder, number))

    @property
    def name(self) -> str:
        """Name of the fusion in its run."""
        return self.spec.name

    @property
    def digest(self) -> str:
        """32 hex digits that are equal for equal fusions of equal models."""
        return digest([self.spec.fitted.model_dump(mode="json"), [member.digest for member in self.members]])


def is_fusion(folder: Path) -> bool:
    """Return whether a folder holds a fusion rather than a single model."""
    return (folder / layout.FUSION).is_file()


Bundle = ModelBundle | FusionBundle


def open_bundle(folder: Path) -> Bundle:
    """Return the bundle in a folder, of a model or of a fusion.

    Raises:
        UserError: the folder has neither, or a damaged one.
    """
    return FusionBundle.of_folder(folder) if is_fusion(folder) else ModelBundle.of_folder(folder)


def fuse_predictions(spec: FusionSpec, predictions: Mapping[str, ModelPrediction]) -> ModelPrediction:
    """Fuse the predictions of the members for one video, as evaluation does for clips.

    An SVM decides once for the whole video, so it gives all frames the same probabilities.

    Args:
        spec: the fusion.
        predictions: predictions of all members, by their names; others are not read.

    Raises:
        UserError: a member has no prediction, or members differ in their classes or numbers of frames.
    """
    members = [_prediction_of(name, spec, predictions) for name in spec.members]
    _check_same(spec, members)
    probability_1TC = [member.probability_TC[None] for member in members]
    fused_1TC = fuse(spec.fitted, probability_1TC, np.array([len(members[0].probability_TC)]), np.array([0]))
    maps = [None if member.attention_TKK is None else member.attention_TKK[None] for member in members]
    attention_1TKK = fuse_attention(spec.fitted.weights, probability_1TC, maps, fused_1TC.argmax(axis=2))
    return ModelPrediction(members[0].classes, fused_1TC[0], None if attention_1TKK is None else attention_1TKK[0])


def _prediction_of(name: str, spec: FusionSpec, predictions: Mapping[str, ModelPrediction]) -> ModelPrediction:
    if name not in predictions:
        raise UserError(f"{spec.name}: fuses {name}, which did not predict; there are only {', '.join(predictions)}")
    return predictions[name]


def _check_same(spec: FusionSpec, members: Sequence[ModelPrediction]) -> None:
    for name, member in zip(spec.members, members, strict=True):
        if member.classes != members[0].classes or member.probability_TC.shape != members[0].probability_TC.shape:
            raise UserError(
                f"{spec.name}: {name} predicts other classes or frames than {spec.members[0]}; they cannot be fused"
            )


def _member(folder: Path, number: int) -> Path:
    return folder / f"member_{number}"


def _read_spec(path: Path) -> FusionSpec:
    try:
        return FusionSpec.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(f"{path.parent}: no fusion to predict with (no {path.name})") from None
    except ValidationError as error:
        raise UserError(f"{path}: written by another version of this project: {error.errors()[0]['msg']}") from None
