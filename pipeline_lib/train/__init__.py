"""Features in, trained models out."""

from pipeline_lib.train.training import train_model

__all__ = ["train_model"]
