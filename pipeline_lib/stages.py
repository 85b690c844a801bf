"""Names of the pipeline's stages. Imports only the standard library, so that the `har` command starts fast."""

from typing import Literal, get_args

Stage = Literal["fetch", "subsample", "chunk", "finetune", "features", "sweep", "train", "evaluate", "heatmaps", "report"]

STAGES: tuple[Stage, ...] = get_args(Stage)
"""Stages in pipeline order. They are also the names of artifact folders, deployments and parameter sections."""
