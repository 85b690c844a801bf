"""The train stage: fit models to features."""

from pipeline_lib.train.training import train_model

__all__ = ["train_model"]
