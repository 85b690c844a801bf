"""The names of the pipeline's stages. Imports nothing, so that the `har` command can tell them at once."""

from typing import Literal, get_args

Stage = Literal["fetch", "subsample", "chunk", "finetune", "features", "sweep", "train", "evaluate", "heatmaps", "report"]

STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order of the pipeline; also the names of artifact folders, deployments and parameter sections."""
