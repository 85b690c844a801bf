"""Things in a room: those on the wall are drawn around a point, those on the floor with their foot at a point."""

from __future__ import annotations

import numpy as np

from demo.brush import Brush, hex_colors, shade
from demo.scenery import WOOD, draw_window, pick

CLOTHS = hex_colors("4f6d7a c0584a 7a9e7e d8a657 6d597a 3d5a80 b56576")
WOODS = hex_colors("8a5a3c a9744f 5e4030 c49a6c e8e2d6")


def draw_wall_window(brush: Brush, rng: np.random.Generator, center: complex, size: float) -> None:
    """Draw a window with curtains."""
    width, height = size * rng.uniform(0.9, 1.3), size
    corner = center - complex(width, height) / 2
    draw_window(brush, corner, width, height, (240, 236, 226))
    cloth = pick(rng, CLOTHS)
    for left in (corner - 0.16 * width, corner + 0.94 * width):
        for fold in range(3):
            brush.rectangle(
                left + fold * 0.075 * width - 0.08j * height,
                0.075 * width,
                1.2 * height,
                shade(cloth, 1 - 0.1 * (fold % 2)),
            )
    brush.capsule(corner - complex(0.2, 0.1) * size, corner + complex(width + 0.2 * size, -0.1 * size), 1.6, 1.6, WOOD)


def draw_picture(brush: Brush, rng: np.random.Generator, center: complex, size: float) -> None:
    """Draw a framed picture of shapes."""
    width, height = 0.5 * size * rng.uniform(0.8, 1.4), 0.5 * size
    corner = center - complex(width, height) / 2
    brush.rectangle(corner - 2.5 - 2.5j, width + 5, height + 5, pick(rng, WOODS))
    brush.rectangle(corner, width, height, (238, 232, 216))
    for _ in range(3):
        at = corner + complex(rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height)
        brush.disc(at, 0.18 * height, pick(rng, CLOTHS))
    brush.rectangle(corner + 0.72j * height, width, 0.28 * height, pick(rng, CLOTHS))


def draw_bookshelf(brush: Brush, rng: np.random.Generator, center: complex, size: float) -> None:
    """Draw a shelf of books on the wall."""
    width = 1.1 * size
    for level in (-0.05, 0.4):
        board = center + complex(-width / 2, level * size)
        brush.rectangle(board, width, 3.0, pick(rng, WOODS))
        along = 2.0
        while along < width - 8:
            thick, tall = rng.uniform(3.5, 7), size * rng.uniform(0.2, 0.32)
            if rng.random() < 0.85:
                brush.rectangle(board + along - 1j * tall, thick - 0.6, tall, pick(rng, CLOTHS))
            along += thick


def draw_clock(brush: Brush, rng: np.random.Generator, center: complex, size: float) -> None:
    """Draw a wall clock."""
    radius = 0.2 * size
    brush.disc(center, radius, pick(rng, WOODS))
    brush.disc(center, 0.84 * radius, (246, 243, 235))
    for length in (0.5, 0.7):
        hand = radius * length * np.exp(1j * rng.uniform(0, 6.28))
        brush.capsule(center, center + complex(hand), 1.0, 0.8, (50, 48, 55))


def draw_cabinet(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a cabinet with drawers and a vase."""
    wood, width = pick(rng, WOODS), 1.3 * size
    corner = foot - complex(width / 2, size)
    brush.rectangle(corner, width, size, wood)
    for row in range(2):
        for column in range(2):
            at = corner + complex((0.06 + 0.46 * column) * width, (0.1 + 0.44 * row) * size)
            brush.rectangle(at, 0.42 * width, 0.36 * size, shade(wood, 0.88))
            brush.disc(at + complex(0.21 * width, 0.18 * size), 1.8, (225, 200, 140))
    brush.capsule(
        corner + 0.3 * width - 0.08j * size,
        corner + 0.3 * width - 0.2j * size,
        0.12 * size,
        0.07 * size,
        pick(rng, CLOTHS),
    )


def draw_sofa(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a sofa."""
    cloth = pick(rng, CLOTHS)
    half = 1.1 * size
    brush.capsule(
        foot - half * 0.8 - 0.65j * size, foot + half * 0.8 - 0.65j * size, 0.32 * size, 0.32 * size, shade(cloth, 0.85)
    )
    brush.rectangle(foot - half - 0.45j * size, 2 * half, 0.38 * size, cloth)
    brush.rectangle(foot - 1.0 - 0.45j * size, 2.0, 0.2 * size, shade(cloth, 0.8))
    for side in (-1, 1):
        brush.capsule(
            foot + side * half - 0.16j * size,
            foot + side * half - 0.55j * size,
            0.15 * size,
            0.15 * size,
            shade(cloth, 1.1),
        )


def draw_plant(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a potted plant."""
    leaf = pick(rng, hex_colors("4f8a5b 6b9e58 3c7a68"))
    for angle in np.linspace(-1.1, 1.1, 7):
        tip = foot + complex(0.5 * size * np.sin(angle), -0.3 * size - 0.65 * size * np.cos(angle))
        brush.capsule(foot - 0.3j * size, tip, 0.04 * size, 0.085 * size, shade(leaf, 0.85 + 0.2 * abs(angle)))
    pot = pick(rng, hex_colors("b5633f e3ddd0 4a5d6b"))
    brush.polygon((foot - 0.13 * size, foot + 0.13 * size, foot + (0.19 - 0.34j) * size, foot + (-0.19 - 0.34j) * size), pot)


def draw_floor_lamp(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a standing lamp with its glow."""
    top = foot - 0.85j * size
    brush.disc(top, 0.34 * size, (255, 236, 180, 45))
    brush.capsule(foot, top, 0.014 * size, 0.012 * size, (64, 60, 62))
    brush.ellipse(foot, 0.1 * size, 0.025 * size, (64, 60, 62))
    brush.polygon(
        [top + point * size for point in (-0.16 + 0.1j, 0.16 + 0.1j, 0.09 - 0.14j, -0.09 - 0.14j)],
        pick(rng, hex_colors("f3dfae f0e6d0 e0a96d")),
    )


def draw_door(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a closed door."""
    wood, width = pick(rng, WOODS), 0.46 * size
    corner = foot - complex(width / 2, size)
    brush.rectangle(corner - 3 - 3j, width + 6, size + 3, shade(wood, 0.75))
    brush.rectangle(corner, width, size, wood)
    for top in (0.08, 0.54):
        brush.rectangle(corner + complex(0.16 * width, top * size), 0.68 * width, 0.36 * size, shade(wood, 0.9))
    brush.disc(corner + complex(0.88 * width, 0.52 * size), 2.2, (225, 200, 140))


def draw_rug(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a rug that lies on the floor."""
    cloth = pick(rng, CLOTHS)
    for share, tone in ((1.0, 1.0), (0.82, 1.25), (0.7, 0.95), (0.3, 1.2)):
        brush.ellipse(foot, 2.6 * size * share, 0.62 * size * share, shade(cloth, tone))


def draw_box(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a cardboard box."""
    card, width = pick(rng, hex_colors("c69c6d b98b5e 8fa3ad d8b98a")), 1.2 * size
    corner = foot - complex(width / 2, 0.8 * size)
    slant = complex(0.25, -0.28) * size
    brush.rectangle(corner, width, 0.8 * size, card)
    brush.polygon((corner, corner + width, corner + width + slant, corner + slant), shade(card, 1.15))
    brush.polygon((corner + width, corner + width + slant, foot + width / 2 + slant, foot + width / 2), shade(card, 0.8))
    brush.rectangle(corner + 0.42 * width, 0.14 * width, 0.8 * size, shade(card, 1.2))


def draw_blocks(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw toy blocks."""
    for offset in (-0.7 + 0j, 0.05 + 0j, -0.35 - 0.62j):
        brush.rectangle(foot + (offset - 0.6j) * size, 0.62 * size, 0.6 * size, pick(rng, CLOTHS))


HANGING = (
    (draw_wall_window, 62.0),
    (draw_picture, 52.0),
    (draw_picture, 70.0),
    (draw_bookshelf, 62.0),
    (draw_clock, 60.0),
)
LOW = ((draw_cabinet, 44.0), (draw_sofa, 48.0), (draw_plant, 62.0))
TALL = ((draw_floor_lamp, 110.0), (draw_door, 120.0))
LYING = ((draw_rug, 26.0), (draw_box, 18.0), (draw_blocks, 12.0), (draw_rug, 20.0))
"""What may be in a room, and its usual height in pixels: on the wall, before it, and on the floor."""
