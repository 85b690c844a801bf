"""The finetune stage: tune the backbone on frames of the training split."""

from pipeline_lib.finetune.training import finetune_backbone

__all__ = ["finetune_backbone"]
