"""Places where actions are filmed. One distribution for all actions: no place tells the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.brush import Brush, Color, brush_on, hex_colors, mix, shade
from demo.furniture import HANGING, LOW, LYING, TALL
from demo.scenery import LEAVES, SCATTERED, STANDING, pick

WIDTH, HEIGHT = 520, 330
"""Pixels of a whole scene; a camera frames 320 x 240 of it."""

SKIES = tuple(
    hex_colors(pair)
    for pair in ("7db4dc d8ecf5", "5f9bd1 f3e3c8", "8fa6bd dfe3e6", "e8a77c f9e2bd", "6c7fb5 f2c9b8", "9ccbd8 f1f6ec")
)
GROUNDS = {
    "tufts": hex_colors("8fb063 a3b86c c9b98a b79b77 7fa08a"),
    "road": hex_colors("8fb063 a3b86c c9b98a d8c69b 7fa08a"),
    "paving": hex_colors("b9b4ab 93a0a3 c9b9a3 a9998c d3cabb"),
}
WALLPAPERS = hex_colors("d9cfc0 b7c4c9 e5d3b8 a9bda6 d6b3a4 c5bcd1 8fa3ad efe6d8")
FLOORS = hex_colors("b08358 8f6b4e c9a77c a7a39b 7d8288 c6b8a4")


Things = Sequence[tuple[Callable[[Brush, np.random.Generator, complex, float], None], float]]
"""Ways to draw, and usual heights in pixels."""


@dataclass(frozen=True)
class Scene:
    """A place: its picture, the height where its ground begins, and whether it is a room."""

    image: Image.Image
    horizon: float
    indoors: bool


def render_scene(rng: np.random.Generator) -> Scene:
    """Draw a place from the shared distribution."""
    indoors = bool(rng.random() < 0.4)
    horizon = float(rng.uniform(0.44, 0.54) * HEIGHT)
    ground = "boards" if indoors else ("tufts", "road", "paving")[rng.integers(3)]
    canvas = _room_shell(rng, horizon) if indoors else _landscape(rng, horizon, pick(rng, GROUNDS[ground]))
    image = Image.fromarray(canvas)
    with brush_on(image, (0, 0, WIDTH, HEIGHT), factor=2) as brush:
        assert brush is not None
        if indoors:
            _furnish(brush, rng, horizon)
        else:
            _populate(brush, rng, horizon, ground)
    return Scene(_grade(image, rng), horizon, indoors)


def _gradient(top: Color, bottom: Color, height: int) -> np.ndarray:
    share = np.linspace(0, 1, height)[:, None, None]
    return np.array(top) * (1 - share) + np.array(bottom) * share + np.zeros((1, WIDTH, 1))


def _mottle(rng: np.random.Generator, height: int, strength: float) -> np.ndarray:
    """Return soft blotches, flattened towards the horizon as perspective does, and fine grain."""
    coarse = rng.normal(0, 40, (9, 13)).clip(-100, 100) + 128
    blotches = Image.fromarray(coarse.astype(np.uint8)).resize((WIDTH, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 1.5, (height, WIDTH))
    return ((np.asarray(blotches, float) - 128) / 40 * strength + grain)[:, :, None]


def _landscape(rng: np.random.Generator, horizon: float, ground: Color) -> np.ndarray:
    split = int(horizon)
    sky = SKIES[rng.integers(len(SKIES))]
    above = _gradient(sky[0], sky[1], split)
    below = _gradient(mix(ground, sky[1], 0.25), shade(ground, 0.86), HEIGHT - split)
    return _to_image(above, below + _mottle(rng, HEIGHT - split, 7))


def _room_shell(rng: np.random.Generator, horizon: float) -> np.ndarray:
    split = int(horizon)
    wall, floor = pick(rng, WALLPAPERS), pick(rng, FLOORS)
    above = _gradient(shade(wall, 0.96), wall, split)
    below = _gradient(shade(floor, 0.85), floor, HEIGHT - split)
    return _to_image(above, below + _mottle(rng, HEIGHT - split, 4))


def _to_image(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.concatenate([above, below]).clip(0, 255).astype(np.uint8)


def _populate(brush: Brush, rng: np.random.Generator, horizon: float, ground: str) -> None:
    """Put hills, markings on the ground, and things far and near into a landscape."""
    if rng.random() < 0.4:
        sun = complex(rng.uniform(0.1, 0.9) * WIDTH, rng.uniform(0.25, 0.7) * horizon)
        brush.disc(sun, 26, (255, 244, 214, 60))
        brush.disc(sun, 15, (255, 246, 222))
    haze = pick(rng, LEAVES)
    for distance in range(int(rng.integers(1, 4)), 0, -1):
        _draw_hills(brush, rng, horizon, 14.0 + 16 * distance, mix(haze, (190, 205, 215), 0.25 + 0.2 * distance))
    GROUND_MARKS[ground](brush, rng, horizon)
    depths = np.sort(rng.uniform(-1, 16, rng.integers(6, 10)))
    for depth, left in zip(depths, _spread(rng, len(depths)), strict=True):
        draw_one_of(STANDING, brush, rng, complex(left, horizon + depth), 0.8 + 0.03 * depth)
    _scatter(SCATTERED, brush, rng, horizon)


def _furnish(brush: Brush, rng: np.random.Generator, horizon: float) -> None:
    """Put a pattern on the walls, boards or tiles on the floor, and furniture into a room."""
    _draw_wallpaper(brush, rng, horizon)
    _draw_boards(brush, rng, horizon)
    brush.rectangle(complex(0, horizon - 6), WIDTH, 6, (236, 230, 220))
    brush.rectangle(complex(0, horizon - 1), WIDTH, 1.5, (120, 110, 104))
    for left in _spread(rng, int(rng.integers(5, 7))):
        foot = complex(left, horizon + rng.uniform(0, 8))
        if rng.random() < 0.3:
            draw_one_of(TALL, brush, rng, foot, 1.0)
            continue
        if rng.random() < 0.75:
            draw_one_of(HANGING, brush, rng, complex(left, horizon * rng.uniform(0.33, 0.5)), 1.0)
        if rng.random() < 0.65:
            draw_one_of(LOW, brush, rng, foot, 1.0)
    _scatter(LYING, brush, rng, horizon)


def draw_one_of(things: Things, brush: Brush, rng: np.random.Generator, at: complex, scale: float) -> None:
    """Draw one of the things, about `scale` times its usual height."""
    draw, size = things[int(rng.integers(len(things)))]
    draw(brush, rng, at, size * scale * rng.uniform(0.85, 1.15))


def _scatter(things: Things, brush: Brush, rng: np.random.Generator, horizon: float) -> None:
    """Put a few things on the ground, the far ones first and smaller."""
    depths = np.sort(rng.uniform(0.15, 0.95, rng.integers(3, 7)))
    for depth, left in zip(depths, _spread(rng, len(depths)), strict=True):
        draw_one_of(things, brush, rng, complex(left, horizon + depth * (HEIGHT - horizon)), 0.55 + 0.6 * depth)


def _spread(rng: np.random.Generator, count: int) -> list[float]:
    """Return positions across the scene, in random order, not too close to each other."""
    return [float(x) for x in rng.permutation((np.arange(count) + rng.uniform(0.15, 0.85, count)) * WIDTH / count)]


def _draw_hills(brush: Brush, rng: np.random.Generator, horizon: float, height: float, color: Color) -> None:
    x = np.arange(0, WIDTH + 8, 8)
    phases, waves = rng.uniform(0, 6.28, 3), rng.uniform(0.006, 0.03, 3)
    rise = sum(np.sin(x * wave + phase) for wave, phase in zip(waves, phases, strict=True)) / 6 + 0.6
    ridge = [complex(left, horizon - height * up) for left, up in zip(x, rise, strict=True)]
    brush.polygon([complex(0, horizon + 1), *ridge, complex(WIDTH + 8, horizon + 1)], color)


def _draw_tufts(brush: Brush, rng: np.random.Generator, horizon: float) -> None:
    tone = pick(rng, hex_colors("5d7a3a 77804f 8a7a55"))
    for _ in range(130):
        depth = rng.uniform(0.02, 1) ** 1.3
        foot = complex(rng.uniform(0, WIDTH), horizon + depth * (HEIGHT - horizon))
        brush.capsule(foot, foot - complex(rng.uniform(-1, 1), 1.5 + 4 * depth), 0.4 + 0.4 * depth, 0.3, (*tone, 130))


def _draw_boards(brush: Brush, rng: np.random.Generator, horizon: float) -> None:
    vanishing = complex(rng.uniform(0.3, 0.7) * WIDTH, horizon - 60)
    for bottom in np.arange(-WIDTH, 2 * WIDTH, rng.uniform(34, 60)):
        end = complex(bottom, HEIGHT)
        start = vanishing + (end - vanishing) * (horizon - vanishing.imag) / (HEIGHT - vanishing.imag)
        brush.capsule(start, end, 0.4, 1.0, (40, 32, 30, 60))
    if rng.random() < 0.5:
        for row in np.linspace(0, 1, 7)[1:-1] ** 1.8:
            brush.rectangle(complex(0, horizon + row * (HEIGHT - horizon)), WIDTH, 0.6 + row, (40, 32, 30, 50))


def _draw_road(brush: Brush, rng: np.random.Generator, horizon: float) -> None:
    top, width = horizon + rng.uniform(14, 40), rng.uniform(40, 65)
    brush.rectangle(complex(0, top - 4), WIDTH, width + 8, (205, 200, 190))
    brush.rectangle(complex(0, top), WIDTH, width, pick(rng, hex_colors("8b8f96 7b7d83 a09a92")))
    for left in range(10, WIDTH, 62):
        brush.rectangle(complex(left, top + width / 2 - 1.5), 30, 3, (235, 232, 220))


GROUND_MARKS = {"tufts": _draw_tufts, "road": _draw_road, "paving": _draw_boards}


def _draw_wallpaper(brush: Brush, rng: np.random.Generator, horizon: float) -> None:
    light, kind = (255, 255, 255, 38), rng.integers(4)
    if kind == 0:
        for left in range(0, WIDTH, 26):
            brush.rectangle(complex(left, 0), 12, horizon, light)
    elif kind == 1:
        for row, top in enumerate(range(8, int(horizon), 22)):
            for left in range(11 * (row % 2), WIDTH, 22):
                brush.disc(complex(left, top), 3, light)
    elif kind == 2:
        brush.rectangle(complex(0, 0.62 * horizon), WIDTH, 0.38 * horizon, (70, 50, 40, 46))
        brush.rectangle(complex(0, 0.62 * horizon), WIDTH, 3, light)


def _grade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Tint the light and darken the edges."""
    tint = 1 + rng.normal(0, 0.035, 3)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    vignette = 1 - 0.1 * (x**2 + y**2)
    graded = np.asarray(image, float) * tint * vignette[:, :, None]
    return Image.fromarray(graded.clip(0, 255).astype(np.uint8))
