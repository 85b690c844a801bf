"""Pretrain the demo's RGB backbone, as networks for photographs are pretrained on ImageNet: on pictures of single things.

The network learns poses, and whether somebody wears an actor's vest, from pictures with one person each. It never sees several
people at once. So its features tell where poses and vests are, but not which pose is the actor's: this is left to the models.

Shape suffixes: N pictures, H W pixels, C channels or classes, D feature channels.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.pictures import POSES, draw_pictures
from pipeline_lib.backbones.build import Backbone, build_backbone
from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.compute.devices import choose_precision
from pipeline_lib.finetune.augmentation import augment
from pipeline_lib.finetune.training import one_cycle
from pipeline_lib.streams.encoding import normalise

NAME, SIDE = "vgg_small", 112
EPOCHS, BATCH_SIZE = 6, 32
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
DROPOUT, LABEL_SMOOTHING = 0.3, 0.1
CROP, COLOUR = 0.2, 0.2
"""As `finetune.crop` and `finetune.colour`; colours change little, because a vest is one."""

CPU = torch.device("cpu")
VERSION = "1"
"""Raise it when equal parameters give other weights: weights that were made before are then made again."""


def pretrain_backbone(path: Path, *, num_pictures: int, seed: int) -> bool:
    """Write pretrained weights to `path`, a safetensors file, unless they are there, and return whether they were made.

    Equal weights give equal bytes, because artifacts made with the file depend on them.
    """
    # One key: safetensors does not write several in a fixed order.
    metadata = {"made_from": f"version {VERSION}, {num_pictures} pictures, seed {seed}"}
    if _metadata(path) == metadata:
        return False
    with reproducible(seed, deterministic=True):
        backbone = build_backbone(NAME, "random", grid="native", seed=seed, image_size=SIDE).channels_last()
        _train(backbone, num_pictures, seed)
    draft = path.with_name(f".{path.name}.draft")
    save_file({name: weight.contiguous() for name, weight in backbone.extractor.state_dict().items()}, draft, metadata)
    draft.replace(path)
    return True


def _metadata(path: Path) -> dict[str, str] | None:
    try:
        with safe_open(path, "pt") as file:
            found: dict[str, str] | None = file.metadata()
            return found
    except (OSError, SafetensorError):
        return None


def _train(backbone: Backbone, num_pictures: int, seed: int) -> None:
    """Train in place with a linear head each for pose and vest, both on the mean of the feature map."""
    pictures = draw_pictures(num_pictures, SIDE, seed)
    images_NCHW = torch.from_numpy(pictures.images_NHWC).permute(0, 3, 1, 2)
    labels_N2 = torch.stack([torch.from_numpy(labels) for labels in (pictures.pose_N, pictures.has_vest_N)], dim=1)
    heads = nn.ModuleList([nn.Linear(backbone.channels, len(POSES)), nn.Linear(backbone.channels, 2)])
    weights = [*backbone.extractor.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    num_batches = math.ceil(num_pictures / BATCH_SIZE)
    backbone.extractor.train()
    for epoch in range(EPOCHS):
        for step, batch in enumerate(torch.randperm(num_pictures, generator=generator).tensor_split(num_batches)):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * one_cycle((epoch + step / num_batches) / EPOCHS)
            inputs_NCHW = normalise(images_NCHW[batch], backbone)
            inputs_NCHW = augment(inputs_NCHW, generator, flip=True, crop=CROP, colour=COLOUR)
            loss = _loss(backbone, heads, inputs_NCHW.contiguous(memory_format=torch.channels_last), labels_N2[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    backbone.extractor.eval()


def _loss(backbone: Backbone, heads: nn.ModuleList, inputs_NCHW: Tensor, labels_N2: Tensor) -> Tensor:
    precision = choose_precision("auto", CPU, training=True)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        features_ND = nn.functional.dropout(backbone.extractor(inputs_NCHW).mean(dim=(2, 3)), DROPOUT)
        logits = [head(features_ND).float() for head in heads]
    losses = [
        nn.functional.cross_entropy(logits_NC, labels_N, label_smoothing=LABEL_SMOOTHING)
        for logits_NC, labels_N in zip(logits, labels_N2.unbind(1), strict=True)
    ]
    return torch.stack(losses).sum()
