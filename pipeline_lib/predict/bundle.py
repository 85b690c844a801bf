"""What a model needs to predict, on disk: a checkpoint, its backbone, and the little that neither of them tells.

As one folder: `checkpoint.safetensors` (class names, preprocessing and digests are inside), `backbone.safetensors` (the network
up to its last feature map) and `predictor.json`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline_lib.artifacts import digest, file_sha256, layout
from pipeline_lib.errors import UserError

PREPARATION = "predictor.json"


class Preparation(BaseModel):
    """What becomes of a video before the backbone sees it, as far as the checkpoint does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    name: str
    """What the model is called where it was trained."""
    fps: float
    """Frames per second that videos are brought to."""
    crf: int
    """x264 quality of the video brought to that rate."""
    frames: int
    """Frames of a clip."""


@dataclass(frozen=True)
class ModelBundle:
    """Where the parts of one model lie."""

    preparation: Preparation
    checkpoint: Path
    backbone: Path

    @classmethod
    def of_folder(cls, folder: Path) -> ModelBundle:
        """Return the splits that `save` wrote.

        Raises:
            UserError: the folder holds no model, or one of another version.
        """
        return cls(read_preparation(folder / PREPARATION), folder / layout.CHECKPOINT, folder / layout.BACKBONE)

    def save(self, folder: Path) -> None:
        """Write everything into an existing folder."""
        (folder / PREPARATION).write_text(self.preparation.model_dump_json(indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(self.checkpoint, folder / layout.CHECKPOINT)
        shutil.copyfile(self.backbone, folder / layout.BACKBONE)

    @property
    def digest(self) -> str:
        """32 hex digits, equal for models that predict the same; the backbone's digest is inside the checkpoint."""
        return digest([self.preparation.model_dump(exclude={"name"}), file_sha256(self.checkpoint)])


def read_preparation(path: Path) -> Preparation:
    """Read a `predictor.json`.

    Raises:
        UserError: it is missing, or of another version.
    """
    try:
        return Preparation.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(f"{path.parent}: no model to predict with (no {path.name})") from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{path}: written by another version of this project: {reason}") from None
