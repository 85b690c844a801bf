"""Finetune stage: the backbone learns the classes from frames of the training split."""

from pipeline_lib.finetune.training import finetune_backbone

__all__ = ["finetune_backbone"]
