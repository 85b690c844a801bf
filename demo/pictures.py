"""Pictures to pretrain the demo's backbone on: single people in the actions' poses, half of them in an actor's vest.

Shape suffixes: N pictures, H W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.actions import ACTIONS, PAIRS, Manner
from demo.brush import brush_on
from demo.collection import worker_pool
from demo.figures import Place, body_parts, draw_figure, in_vest, random_look
from demo.films import HEIGHT, WIDTH, Source, random_camera, random_source

PICTURES_PER_SOURCE = 40
HEIGHTS = (80.0, 150.0)
"""Standing heights in pixels: those of actors and onlookers."""

POSES = tuple(name for name in ACTIONS if name not in {second for _, second in PAIRS})
"""Actions of different poses: of each pair, the first."""


@dataclass(frozen=True)
class Pictures:
    """Pictures with what they show."""

    images_NHWC: np.ndarray
    """uint8 RGB."""
    pose_N: np.ndarray
    """Index into `POSES`."""
    has_vest_N: np.ndarray


def draw_pictures(count: int, side: int, seed: int) -> Pictures:
    """Draw pictures of `side` x `side` pixels, on all cores. Their places and people are in no video."""
    starts = range(0, count, PICTURES_PER_SOURCE)
    sizes = [min(PICTURES_PER_SOURCE, count - start) for start in starts]
    with worker_pool(len(sizes)) as pool:
        parts = list(pool.map(_draw_some, sizes, [side] * len(sizes), [seed] * len(sizes), starts))
    return Pictures(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _draw_some(count: int, side: int, seed: int, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the pictures of one source; return the values of `Pictures`."""
    rng = np.random.default_rng([seed, start, len(POSES), side])
    source = random_source(rng)
    poses, vests = rng.integers(len(POSES), size=count), rng.integers(2, size=count)
    images = [_draw(rng, source, POSES[pose], bool(vest)) for pose, vest in zip(poses, vests, strict=True)]
    small = [image.resize((side, side), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image) for image in small]), poses, vests


def _draw(rng: np.random.Generator, source: Source, action: str, has_vest: bool) -> Image.Image:
    scene = source.scenes[rng.integers(len(source.scenes))]
    camera, horizon = random_camera(rng, scene)
    image = camera.view(scene.image, 0.0)
    pose = ACTIONS[action].pose(float(rng.random()), Manner(float(rng.uniform(0.88, 1.1)), float(rng.random())))
    height = float(rng.uniform(*HEIGHTS)) * ACTIONS[action].size
    foot = complex(rng.uniform(30, WIDTH - 30), rng.uniform(max(horizon + 18, height), HEIGHT - 5))
    look = random_look(rng)
    look = in_vest(look) if has_vest else look
    around = (foot.real - height, foot.imag - 1.5 * height, foot.real + height, foot.imag + 0.2 * height)
    with brush_on(image, around) as brush:
        assert brush is not None
        draw_figure(brush, pose, body_parts(pose, look), look, Place(foot, height, mirrored=bool(rng.random() < 0.5)))
    return image
