"""Drawing a pose as a solid, clothed person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from demo.brush import Brush, Color, hex_colors, shade
from demo.skeleton import Pose, Prop

OUTLINE = 0.015
"""Width of the dark contour, in standing heights."""
INK = (38, 34, 48)
SKINS = hex_colors("f6d0b1 eab98f d39a6a b0754a 8f5a3a 74482f")
HAIRS = hex_colors("2b2024 4a2f23 7a4a24 b5803c d9b25f 8c8b90 a3401f")
SHIRTS = hex_colors("e4572e f2a541 2e86ab 7b4f9e 1b998b d7263d f4efe1 3f5fc4 e06c9f 88b04b 343a52 f7d148")
TROUSERS = hex_colors("2f3e5c 4a4a55 6b4f3a 23555c 8a7f6a 5a2a3c 9aa3ad 1f1f2b")
SHOES = hex_colors("f5f5f0 2a2a30 c0392b 3d6fb0 e0a030")
FRAMES = hex_colors("c1272d 1f6fb2 2a9d5b e09f1f f0f0f0 5b3a8c")
VEST = (190, 255, 0)
"""The colour of the shirt that actors wear and nobody else."""
MATS = hex_colors("4f7cac c46a8d 6d9f71 8d6fb0 3a8f95")


@dataclass(frozen=True)
class Look:
    """What an actor looks like; `tones` are the colours of the equipment."""

    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    shoes: Color
    long_sleeves: bool
    long_trousers: bool
    hairdo: str
    build: float
    tones: dict[str, Color]


class Part(NamedTuple):
    """A piece of the body: the hull of two discs."""

    start: complex
    end: complex
    start_radius: float
    end_radius: float
    color: Color


@dataclass(frozen=True)
class Place:
    """Where a body stands in the picture: the pixel of its ground point, pixels per standing height, and its facing."""

    origin: complex
    height: float
    mirrored: bool

    def point(self, point: complex) -> complex:
        """Return a body point in pixels."""
        x = -point.real if self.mirrored else point.real
        return self.origin + self.height * complex(x, -point.imag)


def random_look(rng: np.random.Generator) -> Look:
    """Dress an actor."""

    def choose(colors: tuple[Color, ...]) -> Color:
        return colors[rng.integers(len(colors))]

    tones = {"steel": (176, 182, 190), "dark": INK, "white": (250, 250, 250)}
    return Look(
        skin=choose(SKINS),
        hair=choose(HAIRS),
        shirt=choose(SHIRTS),
        trousers=choose(TROUSERS),
        shoes=choose(SHOES),
        long_sleeves=bool(rng.random() < 0.35),
        long_trousers=bool(rng.random() < 0.6),
        hairdo=("short", "long", "tail", "cap")[rng.integers(4)],
        build=float(rng.uniform(0.92, 1.15)),
        tones=tones | {"frame": choose(FRAMES), "mat": choose(MATS)},
    )


def in_vest(look: Look) -> Look:
    """Dress somebody as an actor."""
    return replace(look, shirt=VEST, long_sleeves=True)


def body_parts(pose: Pose, look: Look) -> list[list[Part]]:
    """Return the body as groups of parts, in drawing order; parts of a group share one contour."""
    frontal = pose.trunk.breadth > 0.5
    dim = 1.0 if frontal else 0.74
    far_arm = _arm(pose.trunk.shoulders[0], *pose.arms[0], look, dim)
    near_arm = _arm(pose.trunk.shoulders[1], *pose.arms[1], look, 1.0)
    far_leg = _leg(pose.trunk.hips[0], *pose.legs[0], look, dim)
    near_leg = _leg(pose.trunk.hips[1], *pose.legs[1], look, 1.0)
    torso, head = _torso(pose, look), _head(pose, look, frontal)
    if frontal:
        return [far_leg, near_leg, torso, head, far_arm, near_arm]
    return [far_arm, far_leg, near_leg, torso, head, near_arm]


def body_box(groups: Iterable[Iterable[Part]]) -> tuple[float, float, float, float]:
    """Return the tight box of a body: left, bottom, right, top in standing heights."""
    edges = [
        (point.real - radius, point.imag - radius, point.real + radius, point.imag + radius)
        for group in groups
        for part in group
        for point, radius in ((part.start, part.start_radius), (part.end, part.end_radius))
    ]
    left, bottom, right, top = zip(*edges, strict=True)
    return min(left), min(bottom), max(right), max(top)


def prop_box(pose: Pose) -> tuple[float, float, float, float] | None:
    """Return the box of the equipment as `body_box` does, or None if there is none."""
    props = (*pose.behind, *pose.between, *pose.front)
    parts = [Part(prop.start, prop.end, prop.radius, prop.radius, INK) for prop in props]
    return body_box([parts]) if parts else None


def draw_figure(brush: Brush, pose: Pose, groups: list[list[Part]], look: Look, place: Place, outline: float = OUTLINE) -> None:
    """Draw a pose with its equipment; `groups` are its `body_parts`."""
    num_far_groups = 0 if pose.trunk.breadth > 0.5 else 2
    _draw_props(brush, pose.behind, look, place)
    for group in groups[:num_far_groups]:
        _draw_group(brush, group, place, outline)
    _draw_props(brush, pose.between, look, place)
    for group in groups[num_far_groups:]:
        _draw_group(brush, group, place, outline)
    _draw_props(brush, pose.front, look, place)


def _draw_props(brush: Brush, props: Iterable[Prop], look: Look, place: Place) -> None:
    parts = [Part(prop.start, prop.end, prop.radius, prop.radius, look.tones[prop.tone]) for prop in props]
    _draw_group(brush, parts, place, OUTLINE / 2)


def _draw_group(brush: Brush, group: Iterable[Part], place: Place, outline: float) -> None:
    placed = [(place.point(part.start), place.point(part.end), part) for part in group]
    height = place.height
    for start, end, part in placed:
        brush.capsule(start, end, (part.start_radius + outline) * height, (part.end_radius + outline) * height, INK)
    for start, end, part in placed:
        if part.color != INK:
            brush.capsule(start, end, part.start_radius * height, part.end_radius * height, part.color)


def _arm(shoulder: complex, elbow: complex, hand: complex, look: Look, dim: float) -> list[Part]:
    skin, shirt = shade(look.skin, dim), shade(look.shirt, dim)
    width = look.build
    fore = shirt if look.long_sleeves else skin
    sleeve_end = elbow if look.long_sleeves else shoulder + 0.6 * (elbow - shoulder)
    return [
        Part(shoulder, elbow, 0.036 * width, 0.031 * width, skin),
        Part(elbow, hand, 0.031 * width, 0.023 * width, fore),
        Part(hand, hand, 0.033, 0.033, skin),
        Part(shoulder, sleeve_end, 0.042 * width, 0.039 * width, shirt),
    ]


def _leg(hip: complex, knee: complex, ankle: complex, toe: complex, look: Look, dim: float) -> list[Part]:
    skin, cloth, shoe = (shade(color, dim) for color in (look.skin, look.trousers, look.shoes))
    width = look.build
    hem = knee + (ankle - knee) * 0.88 if look.long_trousers else hip + (knee - hip) * 0.85
    shin = cloth if look.long_trousers else skin
    return [
        Part(ankle, toe, 0.034, 0.024, shoe),
        Part(knee, ankle, 0.042 * width, 0.029 * width, skin),
        Part(hip, knee, 0.056 * width, 0.043 * width, cloth if look.long_trousers else skin),
        Part(knee, hem if look.long_trousers else knee, 0.045 * width, 0.036 * width, shin),
        Part(hip, knee if look.long_trousers else hem, 0.06 * width, 0.048 * width, cloth),
    ]


def _torso(pose: Pose, look: Look) -> list[Part]:
    trunk = pose.trunk
    width = look.build * (1.0 - 0.36 * trunk.breadth)
    waist = trunk.pelvis + 0.22 * (trunk.neck - trunk.pelvis)
    low_chest = trunk.pelvis + 0.75 * (trunk.neck - trunk.pelvis)
    sides = [
        Part(shoulder, hip + (waist - trunk.pelvis), 0.06 * width, 0.058 * width, look.shirt)
        for shoulder, hip in zip(trunk.shoulders, trunk.hips, strict=True)
    ]
    return [
        Part(trunk.hips[0], trunk.hips[1], 0.072 * width, 0.072 * width, look.trousers),
        Part(trunk.neck, trunk.neck + 0.5 * (trunk.head - trunk.neck), 0.034, 0.032, shade(look.skin, 0.88)),
        Part(low_chest, waist, 0.075 * look.build, 0.066 * look.build, look.shirt),
        Part(trunk.shoulders[0], trunk.shoulders[1], 0.06 * width, 0.06 * width, look.shirt),
        *sides,
    ]


def _head(pose: Pose, look: Look, frontal: bool) -> list[Part]:
    trunk = pose.trunk
    up = (trunk.head - trunk.neck) / abs(trunk.head - trunk.neck)
    ahead = -1j * up
    back = trunk.head - (0 if frontal else 0.022 * ahead)
    face = trunk.head - 0.014 * up + (0 if frontal else 0.016 * ahead)
    return [
        *_hair_behind(look, back, up, ahead, frontal),
        Part(back + 0.012 * up, back + 0.012 * up, 0.077, 0.077, look.hair),
        Part(face - 0.012 * up, face + 0.006 * up, 0.057, 0.064, look.skin),
        *_features(look, face, up, ahead, frontal),
        *_cap(look, trunk.head, up, ahead, frontal),
    ]


def _hair_behind(look: Look, back: complex, up: complex, ahead: complex, frontal: bool) -> Iterator[Part]:
    if look.hairdo == "long" and frontal:
        yield Part(back - 0.03 * up, back - 0.085 * up, 0.078, 0.07, look.hair)
    elif look.hairdo == "long":
        yield Part(back - 0.02 * ahead, back - 0.03 * ahead - 0.09 * up, 0.055, 0.045, look.hair)
    elif look.hairdo == "tail":
        side = 0.05 if frontal else -0.075
        yield Part(back + side * ahead + 0.03 * up, back + 1.5 * side * ahead - 0.05 * up, 0.03, 0.02, look.hair)


def _features(look: Look, face: complex, up: complex, ahead: complex, frontal: bool) -> Iterator[Part]:
    """Give eyes, and a nose to the profile or a mouth to the front."""
    eyes = (-0.026, 0.026) if frontal else (0.032,)
    for eye in eyes:
        yield Part(face + eye * ahead + 0.008 * up, face + eye * ahead + 0.002 * up, 0.009, 0.009, INK)
    if frontal:
        yield Part(face - 0.014 * ahead - 0.032 * up, face + 0.014 * ahead - 0.032 * up, 0.006, 0.006, shade(look.skin, 0.6))
    else:
        yield Part(face + 0.06 * ahead - 0.008 * up, face + 0.06 * ahead - 0.012 * up, 0.013, 0.014, look.skin)


def _cap(look: Look, head: complex, up: complex, ahead: complex, frontal: bool) -> Iterator[Part]:
    if look.hairdo != "cap":
        return
    cloth = shade(look.tones["frame"], 0.95)
    crown = head + 0.062 * up
    reach = 0.042 if frontal else 0.03
    yield Part(crown - reach * ahead, crown + reach * ahead, 0.036, 0.036, cloth)
    brim = (-0.05, 0.05) if frontal else (0.03, 0.1)
    edge = crown - 0.026 * up
    yield Part(edge + brim[0] * ahead, edge + brim[1] * ahead, 0.012, 0.011, shade(cloth, 0.7))
