"""A film: one video's frames, an action performed before a scene, and the actor's box in each frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from demo import scenes
from demo.actions import ACTIONS, Action, Manner
from demo.brush import brush_on
from demo.distractors import Distractor, paint_onlookers, random_distractors
from demo.figures import (
    Look,
    Part,
    Place,
    body_box,
    body_parts,
    draw_figure,
    in_vest,
    prop_box,
    random_look,
)
from demo.skeleton import Pose

WIDTH, HEIGHT = 320, 240
"""Frame size in pixels: HMDB-51's."""
ACTOR_HEIGHT = 100.0
"""Standing height of a middling actor in pixels; with it, boxes cover about 6 % of the frame."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


NUM_SCENES, CAST = 3, 4
"""Places and people of a source."""


@dataclass(frozen=True)
class Source:
    """What the videos of a source share: a few places and a few people.

    Every action is performed in every source, so that neither the place nor the clothes tell which one it is.
    """

    scenes: tuple[scenes.Scene, ...]
    cast: tuple[Look, ...]


@dataclass(frozen=True)
class Camera:
    """Where a video's frame lies in its scene, how it moves, and how its exposure wavers."""

    corner: complex
    zoom: float
    pan: complex
    shake: float
    gain: float
    flicker: float
    phase: float

    def shift(self, seconds: float) -> complex:
        """Return how far the picture has moved after so many seconds, in pixels."""
        beat = 2.3 * seconds + self.phase
        tremble = complex(math.sin(beat) + 0.5 * math.sin(3.1 * beat), math.cos(1.3 * beat) + 0.5 * math.sin(2.7 * beat))
        return self.shake * tremble - self.pan * seconds

    def brightness(self, seconds: float) -> float:
        """Return the exposure at a time, about 1."""
        return self.gain + self.flicker * math.sin(1.7 * seconds + self.phase)

    @property
    def frame(self) -> tuple[complex, complex]:
        """The top left and the bottom right corner of the first frame, in pixels of the scene."""
        return self.corner, self.corner + complex(WIDTH, HEIGHT) / self.zoom

    def view(self, scene: Image.Image, seconds: float) -> Image.Image:
        """Return what the camera sees of the scene's picture."""
        corner = self.corner - self.shift(seconds) / self.zoom
        size = complex(WIDTH, HEIGHT) / self.zoom
        x = min(max(corner.real, 0.0), scene.width - size.real)
        y = min(max(corner.imag, 0.0), scene.height - size.imag)
        return scene.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, (x, y, x + size.real, y + size.imag))


@dataclass(frozen=True)
class Moment:
    """The actor in one frame; `way` is how far it has come, in pixels."""

    seconds: float
    pose: Pose
    parts: list[list[Part]]
    way: complex


def random_source(rng: np.random.Generator) -> Source:
    """Find places and people."""
    return Source(
        scenes=tuple(scenes.render_scene(rng) for _ in range(NUM_SCENES)),
        cast=tuple(random_look(rng) for _ in range(CAST)),
    )


class Film:
    """One video of a source: iterate over `frames`, which gives each picture with the actor's box."""

    def __init__(self, rng: np.random.Generator, source: Source, action: str, fps: int, num_frames: int) -> None:
        """Direct the film: choose place, actor, manner, phase, speed, camera, and what else goes on."""
        scene = source.scenes[rng.integers(len(source.scenes))]
        self._look = in_vest(source.cast[rng.integers(len(source.cast))])
        is_mirrored = bool(rng.random() < 0.5)
        self.facing_left = bool(rng.random() < 0.5)
        self._height = ACTOR_HEIGHT * ACTIONS[action].size * float(rng.uniform(0.9, 1.12))
        self._camera, horizon = random_camera(rng, scene)
        self.is_shaky = self._camera.shake > 0.8
        times = [frame / fps for frame in range(num_frames)]
        self._moments = self._rehearse(rng, ACTIONS[action], times)
        self._ground = self._find_place(rng, horizon)
        self._backdrop = ImageOps.mirror(scene.image) if is_mirrored else scene.image.copy()
        paint_onlookers(rng, self._backdrop, self._camera.frame, scene.horizon)
        self._distractors = random_distractors(rng, WIDTH, horizon, HEIGHT, scene.indoors)

    def frames(self) -> Iterator[tuple[Image.Image, Box]]:
        """Yield each frame with the actor's box, in fractions of the frame."""
        for moment in self._moments:
            frame = self._camera.view(self._backdrop, moment.seconds)
            shift = self._camera.shift(moment.seconds)
            _paint_all(self._distractors, frame, moment.seconds, shift)
            place = self._place(moment, self._ground)
            self._draw_actor(frame, moment, place)
            levels = (np.arange(256) * self._camera.brightness(moment.seconds)).clip(0, 255).astype(int).tolist()
            yield frame.point(levels * 3), _visible(_to_frame(moment, place))

    def _rehearse(self, rng: np.random.Generator, action: Action, times: list[float]) -> list[Moment]:
        manner = Manner(vigor=float(rng.uniform(0.88, 1.1)), habit=float(rng.random()))
        pace = action.repetitions_per_second * float(rng.uniform(0.8, 1.25))
        phase, sign = float(rng.random()), -1 if self.facing_left else 1
        moments = []
        for seconds in times:
            pose = action.pose(phase + pace * seconds, manner)
            # Halfway in the middle of the film, so that a film and its reverse lie alike in the frame.
            way = action.travel_per_second * self._height * (seconds - 0.5 * times[-1])
            moments.append(Moment(seconds, pose, body_parts(pose, self._look), complex(sign * way.real, -way.imag)))
        return moments

    def _find_place(self, rng: np.random.Generator, horizon: float) -> complex:
        """Choose where the actor stands, anywhere on the ground where the whole action can be seen."""
        boxes = [_full_box(moment, self._place(moment, 0j)) for moment in self._moments]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
        # Towards the sides: whoever always looks at the middle of the frame must not find the actor there.
        x = _between(4 - left, WIDTH - 4 - right, float(rng.beta(0.25, 0.25)))
        y = _between(max(4 - top, horizon + 18), HEIGHT - 5 - bottom, float(rng.beta(0.7, 0.7)))
        return complex(x, y)

    def _place(self, moment: Moment, ground: complex) -> Place:
        origin = ground + moment.way + self._camera.shift(moment.seconds)
        return Place(origin, self._height, self.facing_left)

    def _draw_actor(self, frame: Image.Image, moment: Moment, place: Place) -> None:
        left, top, right, bottom = _full_box(moment, place)
        with brush_on(frame, (left - 4, top - 4, right + 4, max(bottom, place.origin.imag) + 8)) as brush:
            if brush is not None:
                half = (right - left) * 0.46
                brush.ellipse(complex((left + right) / 2, place.origin.imag + 1), half, 0.03 * self._height, (30, 28, 44, 70))
                draw_figure(brush, moment.pose, moment.parts, self._look, place)


def _paint_all(distractors: list[Distractor], frame: Image.Image, seconds: float, shift: complex) -> None:
    for distractor in distractors:
        distractor.paint(frame, seconds, shift)


def random_camera(rng: np.random.Generator, scene: scenes.Scene) -> tuple[Camera, float]:
    """Return a camera, and the height of the horizon in its first frame."""
    zoom = float(rng.uniform(0.92, 1.12))
    margin = 16.0
    room = complex(scene.image.width - WIDTH / zoom - 2 * margin, scene.image.height - HEIGHT / zoom - 2 * margin)
    corner = complex(margin + rng.uniform(0, max(room.real, 0)), margin + rng.uniform(0.15, 0.95) * max(room.imag, 0))
    pans = rng.random() < 0.35
    camera = Camera(
        corner=corner,
        zoom=zoom,
        pan=complex(rng.uniform(-5, 5), rng.uniform(-1, 1)) if pans else 0j,
        shake=float(rng.uniform(0.2, 1.4)),
        gain=float(rng.uniform(0.82, 1.12)),
        flicker=float(rng.uniform(0, 0.05)),
        phase=float(rng.uniform(0, 6)),
    )
    return camera, (scene.horizon - corner.imag) * zoom


def _between(low: float, high: float, share: float) -> float:
    """Return the point `share` of the way between the bounds; their middle if there is no room."""
    return low + (high - low) * share if low < high else (low + high) / 2


def _full_box(moment: Moment, place: Place) -> Box:
    """Return the box of the actor with the equipment, in pixels."""
    body, props = body_box(moment.parts), prop_box(moment.pose)
    if props is not None:
        body = (min(body[0], props[0]), min(body[1], props[1]), max(body[2], props[2]), max(body[3], props[3]))
    return _placed(body, place)


def _placed(box: tuple[float, float, float, float], place: Place) -> Box:
    first, second = place.point(complex(box[0], box[1])), place.point(complex(box[2], box[3]))
    return min(first.real, second.real), second.imag, max(first.real, second.real), first.imag


def _to_frame(moment: Moment, place: Place) -> Box:
    left, top, right, bottom = _placed(body_box(moment.parts), place)
    return left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT


def _visible(box: Box) -> Box:
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
    return left, top, right, bottom
