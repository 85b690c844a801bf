"""The families of backbones. To add one, write its file and name it here."""

from __future__ import annotations

from pipeline_lib.backbones.c3d import C3D
from pipeline_lib.backbones.family import Family
from pipeline_lib.backbones.hugging_face_clips import HuggingFaceClips
from pipeline_lib.backbones.timm_images import TimmImages
from pipeline_lib.backbones.torchvision_images import TorchvisionImages
from pipeline_lib.backbones.torchvision_videos import TorchvisionVideos
from pipeline_lib.backbones.vgg_small import SmallVGGs

FAMILIES: tuple[Family, ...] = (
    TorchvisionImages(),
    SmallVGGs(),
    TorchvisionVideos(),
    TimmImages(),
    HuggingFaceClips(),
    C3D(),
)
