"""What else goes on in a picture: things that drift, bounce or sway, and people who pass by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from demo.actions import ACTIONS, Action, Manner, walk
from demo.brush import Brush, Color, brush_on, hex_colors, shade
from demo.figures import Look, Place, body_parts, draw_figure, random_look
from demo.skeleton import Pose

PAINTS = hex_colors("d7263d f2a541 2e86ab 1b998b f4efe1 7b4f9e e06c9f 3f5fc4")

ROUND, UPRIGHT = (1.0, 1.0, 1.5), (0.75, 1.45, 0.12)
"""How far things and people reach from where they are: to the sides, up and down, in sizes."""

NUM_ONLOOKERS, ONLOOKER_HEIGHTS = (4, 7), (105.0, 165.0)
"""Fewest, and one more than most; standing heights in pixels of the frame."""

Path = Callable[[float], complex]
"""Where something is after so many seconds, in pixels of the frame."""


Maker = Callable[[np.random.Generator, int, float, int], "Distractor"]
"""Makes one for a frame of this width, horizon and height."""


@dataclass(frozen=True)
class Distractor:
    """Something that catches the eye but tells nothing about the action."""

    draw: Callable[[Brush, Distractor, complex, float], None]
    path: Path
    size: float
    color: Color
    look: Look | None = field(default=None, repr=False)
    speed: float = 0.0
    """Of somebody who walks, in pixels per second to the right."""

    def paint(self, frame: Image.Image, seconds: float, shift: complex) -> None:
        """Draw it on a frame at a time; `shift` is how far the camera has moved the picture."""
        center = self.path(seconds) + shift
        side, up, down = (self.size * reach for reach in (ROUND if self.look is None else UPRIGHT))
        box = (center.real - side, center.imag - up, center.real + side, center.imag + down)
        with brush_on(frame, box, factor=2) as brush:
            if brush is not None:
                self.draw(brush, self, center, seconds)


def random_distractors(rng: np.random.Generator, width: int, horizon: float, height: int, indoors: bool) -> list[Distractor]:
    """Choose what else is in a video whose frame has its horizon here."""
    movers: tuple[Maker, ...] = (_bouncing_ball, _balloon, _balloon, _passer_by)
    if not indoors:
        movers += (_cloud, _car, _bird)
    chosen = [movers[rng.integers(len(movers))] for _ in range(rng.integers(2, 4))]
    distractors = [make(rng, width, horizon, height) for make in chosen]
    return sorted(distractors, key=lambda distractor: distractor.path(0.0).imag)


def _paint(rng: np.random.Generator) -> Color:
    return PAINTS[rng.integers(len(PAINTS))]


def _drift(start: complex, pixels_per_second: float, width: int, margin: float) -> Path:
    """Move sideways, and come back in on the other side."""
    span = width + 2 * margin

    def path(seconds: float) -> complex:
        return complex((start.real + pixels_per_second * seconds + margin) % span - margin, start.imag)

    return path


def _bouncing_ball(rng: np.random.Generator, width: int, horizon: float, height: int) -> Distractor:
    floor, leap, phase = rng.uniform(horizon + 10, height - 12), rng.uniform(15, 30), rng.uniform(0, 1)
    along = _drift(complex(rng.uniform(0, width), floor), float(rng.choice((-1, 1)) * rng.uniform(5, 20)), width, 20)
    pace = rng.uniform(0.3, 0.5)

    def path(seconds: float) -> complex:
        return along(seconds) - 1j * leap * abs(math.sin(math.pi * (pace * seconds + phase)))

    return Distractor(_draw_ball, path, float(rng.uniform(13, 22)), _paint(rng))


def _balloon(rng: np.random.Generator, width: int, horizon: float, height: int) -> Distractor:
    middle = complex(rng.uniform(0, width), rng.uniform(0.3, 0.7) * height)
    rise, phase = float(rng.choice((-1, 1)) * rng.uniform(10, 40)), rng.uniform(0, 6)

    def path(seconds: float) -> complex:
        return middle + complex(3 * math.sin(1.2 * seconds + phase), rise * (1.0 - seconds))

    return Distractor(_draw_balloon, path, float(rng.uniform(35, 60)), _paint(rng))


def _cloud(rng: np.random.Generator, width: int, horizon: float, height: int) -> Distractor:
    start = complex(rng.uniform(0, width), rng.uniform(0.06, 0.3) * max(horizon, 40))
    return Distractor(
        _draw_cloud,
        _drift(start, float(rng.uniform(-14, 14)), width, 60),
        float(rng.uniform(22, 42)),
        (255, 255, 255, 205),
    )


def _car(rng: np.random.Generator, width: int, horizon: float, height: int) -> Distractor:
    start = complex(rng.uniform(0, width), horizon + rng.uniform(8, 24))
    speed = float(rng.choice((-1, 1)) * rng.uniform(10, 30))
    return Distractor(_draw_car, _drift(start, speed, width, 50), float(rng.uniform(40, 60)), _paint(rng))


def _bird(rng: np.random.Generator, width: int, horizon: float, height: int) -> Distractor:
    start = complex(rng.uniform(0, width), rng.uniform(0.15, 0.8) * max(horizon, 30))
    speed = float(rng.choice((-1, 1)) * rng.uniform(10, 25))
    return Distractor(_draw_bird, _drift(start, speed, width, 15), float(rng.uniform(7, 11)), (58, 56, 70))


def _passer_by(rng: np.random.Generator, width: int, horizon: float, height: int) -> Distractor:
    size = float(rng.uniform(100, 150))
    start = complex(rng.uniform(0, width), rng.uniform(max(horizon + 20, size), height + 20))
    speed = float(rng.choice((-1, 1)) * rng.uniform(8, 24))
    return Distractor(_draw_passer_by, _drift(start, speed, width, 60), size, _paint(rng), random_look(rng), speed)


def paint_onlookers(rng: np.random.Generator, picture: Image.Image, frame: tuple[complex, complex], horizon: float) -> None:
    """Paint people who keep still in poses of one action, larger than the actor or as large, into the picture of a place.

    The action is chosen at random, whatever the actor does: it is the one that most of the picture shows.

    Args:
        rng: chooses who they are and where they are.
        picture: painted on.
        frame: top left and bottom right corner of what the camera sees of it.
        horizon: where the ground begins, in pixels of the picture.
    """
    top_left, bottom_right = frame
    scale = (bottom_right - top_left).imag / 240
    action = list(ACTIONS.values())[rng.integers(len(ACTIONS))]
    count = rng.integers(*NUM_ONLOOKERS)
    people = [_onlooker(rng, action, top_left, bottom_right, horizon, scale) for _ in range(count)]
    for pose, look, place in sorted(people, key=lambda person: person[2].origin.imag):
        side, up, down = (place.height * reach for reach in UPRIGHT)
        foot = place.origin
        with brush_on(picture, (foot.real - side, foot.imag - up, foot.real + side, foot.imag + down)) as brush:
            if brush is not None:
                draw_figure(brush, pose, body_parts(pose, look), look, place)


def _onlooker(
    rng: np.random.Generator, action: Action, top_left: complex, bottom_right: complex, horizon: float, scale: float
) -> tuple[Pose, Look, Place]:
    pose = action.pose(float(rng.random()), Manner(1.0, float(rng.random())))
    height = float(rng.uniform(*ONLOOKER_HEIGHTS)) * action.size * scale
    lowest = max(horizon + 18, top_left.imag + height)
    foot = complex(rng.uniform(top_left.real, bottom_right.real), rng.uniform(lowest, max(lowest, bottom_right.imag - 5)))
    return pose, random_look(rng), Place(foot, height, mirrored=bool(rng.random() < 0.5))


def _draw_ball(brush: Brush, ball: Distractor, center: complex, seconds: float) -> None:
    turn = complex(math.cos(4 * seconds), math.sin(4 * seconds))
    brush.disc(center, ball.size, shade(ball.color, 0.72))
    brush.disc(center - 0.08 * (1 + 1j) * ball.size, 0.86 * ball.size, ball.color)
    brush.capsule(
        center - 0.7 * turn * ball.size,
        center + 0.7 * turn * ball.size,
        0.12 * ball.size,
        0.12 * ball.size,
        (250, 246, 235),
    )


def _draw_balloon(brush: Brush, balloon: Distractor, center: complex, seconds: float) -> None:
    size = balloon.size
    brush.capsule(center + 0.5j * size, center + complex(0.1 * math.sin(2 * seconds), 1.35) * size, 0.5, 0.5, (90, 90, 96))
    brush.ellipse(center, 0.48 * size, 0.58 * size, balloon.color)
    brush.ellipse(center - (0.16 + 0.22j) * size, 0.11 * size, 0.16 * size, (255, 255, 255, 110))


def _draw_cloud(brush: Brush, cloud: Distractor, center: complex, seconds: float) -> None:
    for offset, radius in ((-0.55, 0.24), (-0.2, 0.36), (0.2, 0.3), (0.55, 0.22)):
        brush.disc(center + (offset - 0.4j * radius) * cloud.size, radius * cloud.size, cloud.color[:3])
    brush.capsule(
        center + (-0.6 + 0.08j) * cloud.size,
        center + (0.6 + 0.08j) * cloud.size,
        0.13 * cloud.size,
        0.13 * cloud.size,
        cloud.color[:3],
    )


def _draw_car(brush: Brush, car: Distractor, center: complex, seconds: float) -> None:
    size = car.size
    cabin = [center + point * size for point in (-0.55 - 0.4j, -0.36 - 0.72j, 0.26 - 0.72j, 0.52 - 0.4j)]
    brush.polygon(cabin, shade(car.color, 0.9))
    for pane in ((-0.44, -0.3, -0.04), (0.0, 0.21, 0.38)):
        brush.polygon(
            [
                center + complex(x, y) * size
                for x, y in zip((pane[0], pane[1], pane[1], pane[2]), (-0.42, -0.66, -0.66, -0.42), strict=True)
            ],
            (190, 216, 228),
        )
    brush.capsule(center + (-0.82 - 0.28j) * size, center + (0.82 - 0.28j) * size, 0.17 * size, 0.17 * size, car.color)
    for wheel in (-0.55, 0.55):
        brush.disc(center + (wheel - 0.13j) * size, 0.17 * size, (40, 40, 46))
        brush.disc(center + (wheel - 0.13j) * size, 0.08 * size, (190, 194, 200))


def _draw_bird(brush: Brush, bird: Distractor, center: complex, seconds: float) -> None:
    flap = 0.55 * math.sin(9 * seconds)
    for side in (-1, 1):
        elbow = center + complex(0.45 * side, -0.3 - 0.5 * flap) * bird.size
        brush.capsule(center, elbow, 1.3, 1.0, bird.color)
        brush.capsule(elbow, elbow + complex(0.5 * side, 0.2 + 0.7 * flap) * bird.size, 1.0, 0.6, bird.color)


def _draw_passer_by(brush: Brush, person: Distractor, foot: complex, seconds: float) -> None:
    assert person.look is not None
    pose = walk(seconds * abs(person.speed) / (0.8 * person.size) + person.size, Manner(1.0, 0.5))
    place = Place(foot, person.size, mirrored=person.speed < 0)
    draw_figure(brush, pose, body_parts(pose, person.look), person.look, place)
