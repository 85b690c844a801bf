"""Model bundles: the files that a model needs to predict.

A bundle's folder holds `checkpoint.safetensors` (with class names, preprocessing and digests), `backbone.safetensors` (the
network up to its last feature map; of a model that reads two streams also `backbone_2.safetensors`) and `predictor.json` (an
`InputSpec`). If the first or second stream is optical flow with weights by path, they are `flow.safetensors` or
`flow_2.safetensors`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline_lib.artifacts import digest, file_sha256, layout
from pipeline_lib.errors import UserError

INPUT_SPEC_FILE = "predictor.json"
BACKBONES = (layout.BACKBONE, "backbone_2.safetensors")
"""Files of the backbones of a model's first and second stream."""
FLOWS = ("flow.safetensors", "flow_2.safetensors")
"""Files of the weights of their methods of optical flow."""


class InputSpec(BaseModel):
    """How to prepare videos for the backbone, as far as it is not in the checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    name: str
    """Name of the model in its training run."""
    fps: float
    """Frame rate of subsampled videos."""
    crf: int
    """x264 quality of subsampled videos."""
    frames: int
    """Frames per clip."""


@dataclass(frozen=True)
class ModelBundle:
    """The files of one model."""

    input_spec: InputSpec
    checkpoint: Path
    backbones: tuple[Path, ...]
    """One a stream that the model reads."""
    flows: tuple[Path | None, Path | None] = (None, None)
    """Weights of the first and second stream's method of optical flow, if the user gave a path."""

    @classmethod
    def of_folder(cls, folder: Path) -> ModelBundle:
        """Return the bundle that `save` wrote.

        Raises:
            UserError: the folder has no model, or one of another version.
        """
        spec, (first, second) = read_input_spec(folder / INPUT_SPEC_FILE), (folder / name for name in BACKBONES)
        flow, flow_2 = (path if path.is_file() else None for path in (folder / name for name in FLOWS))
        return cls(spec, folder / layout.CHECKPOINT, (first, second) if second.is_file() else (first,), (flow, flow_2))

    def save(self, folder: Path) -> None:
        """Copy all files to an existing folder."""
        (folder / INPUT_SPEC_FILE).write_text(self.input_spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(self.checkpoint, folder / layout.CHECKPOINT)
        for backbone, name in zip(self.backbones, BACKBONES, strict=False):
            shutil.copyfile(backbone, folder / name)
        for flow, name in zip(self.flows, FLOWS, strict=True):
            if flow:
                shutil.copyfile(flow, folder / name)

    @property
    def name(self) -> str:
        """Name of the model in its run."""
        return self.input_spec.name

    @property
    def members(self) -> tuple[ModelBundle, ...]:
        """The models that it is made from: itself."""
        return (self,)

    @property
    def digest(self) -> str:
        """32 hex digits that are equal for equal models; the checkpoint contains the backbone's digest."""
        return digest([self.input_spec.model_dump(exclude={"name"}), file_sha256(self.checkpoint)])


def read_input_spec(path: Path) -> InputSpec:
    """Read a `predictor.json`.

    Raises:
        UserError: the file is missing, or of another version.
    """
    try:
        return InputSpec.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(f"{path.parent}: no model to predict with (no {path.name})") from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{path}: written by another version of this project: {reason}") from None
