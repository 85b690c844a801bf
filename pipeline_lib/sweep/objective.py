"""What a trial computes: one model trained on the train split, judged on the val split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from pipeline_lib.params import ModelParams
from pipeline_lib.sweep.running import OnEpoch
from pipeline_lib.train import train_model


@dataclass(frozen=True, eq=False)
class TrainingObjective:
    """Trains a model and keeps nothing of it; what counts has been reported, epoch by epoch."""

    clips: pd.DataFrame
    """Those of train and val alone."""
    feature_files: tuple[Path, ...]
    scratch: Path

    def __call__(self, params: ModelParams, on_epoch: OnEpoch) -> None:
        """Train with `params`.

        Raises:
            UserError: what `train_model` finds wrong with clips, features or parameters.
        """
        with TemporaryDirectory(dir=self.scratch) as folder:
            train_model(self.clips, self.feature_files, Path(folder), None, params, on_epoch=on_epoch)
