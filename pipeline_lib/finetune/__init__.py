"""The finetune stage: tune the backbones of streams on the training split."""

from pipeline_lib.finetune.training import finetune_backbone

__all__ = ["finetune_backbone"]
