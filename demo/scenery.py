"""Things that stand outdoors: each is drawn with its foot at a point of the picture, `size` pixels high."""

from __future__ import annotations

import numpy as np

from demo.brush import Brush, Color, hex_colors, mix, shade

LEAVES = hex_colors("4f7f43 6a994e 386641 7f9c4a b5893c a5573a 3f7d6b")
WALLS = hex_colors("d9a679 c97b63 e6d3b3 9fb1bd b8bba0 cf9d8d e9c88f")
ROOFS = hex_colors("8c3f34 5b5560 7a4b3a 4a6075")
WOOD = (112, 80, 58)
GLASS = (178, 208, 222)


def pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    """Return one of the colours."""
    return colors[rng.integers(len(colors))]


def draw_tree(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a tree with a round crown."""
    leaf = pick(rng, LEAVES)
    brush.capsule(foot, foot - 0.55j * size, 0.05 * size, 0.032 * size, WOOD)
    puffs = [(complex(rng.uniform(-0.24, 0.24), -rng.uniform(0.48, 0.86)) * size, rng.uniform(0.14, 0.2)) for _ in range(7)]
    for tone, offset in ((0.82, 0.03 + 0.04j), (1.0, 0j), (1.14, -0.04 - 0.05j)):
        for puff, radius in puffs:
            brush.disc(foot + puff + offset * size, radius * size * (1.0 if tone < 1.1 else 0.6), shade(leaf, tone))


def draw_fir(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a conifer of three tiers."""
    leaf = shade(LEAVES[2], rng.uniform(0.85, 1.15))
    brush.capsule(foot, foot - 0.2j * size, 0.035 * size, 0.03 * size, WOOD)
    for tier in range(3):
        base, half = foot - (0.14 + 0.24 * tier) * 1j * size, (0.26 - 0.055 * tier) * size
        tip = base - 0.4j * size
        brush.polygon((base - half, base + half, tip), leaf)
        brush.polygon((base + 0.25 * half, base + half, tip), shade(leaf, 0.84))


def draw_bush(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a low bush, sometimes in flower."""
    leaf = pick(rng, LEAVES[:4])
    for tone, rise in ((0.85, 0.0), (1.0, 0.08)):
        for offset in (-0.5, -0.15, 0.25, 0.55):
            radius = size * (0.42 - 0.12 * abs(offset))
            brush.disc(foot + complex(offset, -0.32 - rise) * size, radius, shade(leaf, tone))
    if rng.random() < 0.4:
        flower = pick(rng, hex_colors("f4f1de e07a9a f2cc5c"))
        for _ in range(9):
            brush.disc(foot + complex(rng.uniform(-0.7, 0.7), rng.uniform(-0.65, -0.15)) * size, 0.05 * size, flower)


def draw_house(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a house with a gable roof, windows and a door."""
    wall, roof = pick(rng, WALLS), pick(rng, ROOFS)
    width = size * rng.uniform(0.85, 1.25)
    corner = foot - width / 2 - 0.62j * size
    brush.rectangle(corner, width, 0.62 * size, wall)
    brush.rectangle(corner, 0.14 * width, 0.62 * size, shade(wall, 0.88))
    eaves = 0.07 * width
    brush.polygon(
        (
            corner - eaves,
            corner + width + eaves,
            corner + 0.78 * width - 0.38j * size,
            corner + 0.22 * width - 0.38j * size,
        ),
        roof,
    )
    for column in (0.2, 0.62):
        draw_window(brush, corner + column * width + 0.14j * size, 0.17 * size, 0.19 * size, shade(wall, 1.25))
    brush.rectangle(corner + 0.42 * width + 0.3j * size, 0.14 * size, 0.32 * size, shade(roof, 0.8))


def draw_window(brush: Brush, corner: complex, width: float, height: float, frame: Color) -> None:
    """Draw a window of four panes; `corner` is its top left one."""
    border = 0.09 * min(width, height)
    brush.rectangle(corner - complex(border, border), width + 2 * border, height + 2 * border, frame)
    brush.rectangle(corner, width, height, GLASS)
    brush.polygon((corner, corner + 0.7 * width, corner + 1j * height), mix(GLASS, (255, 255, 255), 0.35))
    brush.rectangle(corner + 0.5 * (width - border), border, height, frame)
    brush.rectangle(corner + 0.5j * (height - border), width, border, frame)


def draw_tower(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a block of flats with lit and dark windows."""
    wall = mix(pick(rng, WALLS), (120, 130, 145), 0.45)
    width = size * rng.uniform(0.35, 0.55)
    corner = foot - width / 2 - 1j * size
    brush.rectangle(corner, width, size, wall)
    brush.rectangle(corner + 0.8 * width, 0.2 * width, size, shade(wall, 0.85))
    rows, columns = 7, 3
    for row in range(rows):
        for column in range(columns):
            glass = GLASS if rng.random() < 0.7 else (247, 223, 150)
            pane = corner + complex((column + 0.3) * 0.8 * width / columns, (row + 0.35) * size / rows)
            brush.rectangle(pane, 0.4 * 0.8 * width / columns, 0.45 * size / rows, shade(glass, 0.9))


def draw_lamp_post(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a street lamp."""
    metal = (72, 78, 88)
    side = rng.choice((-1, 1))
    top = foot - 1j * size
    brush.capsule(foot, top, 0.022 * size, 0.016 * size, metal)
    brush.capsule(top, top + side * 0.2 * size, 0.014 * size, 0.014 * size, metal)
    brush.capsule(
        top + side * 0.17 * size + 0.02j * size,
        top + side * 0.25 * size + 0.02j * size,
        0.026 * size,
        0.026 * size,
        (255, 240, 190),
    )


def draw_fence(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a stretch of picket fence."""
    paint = pick(rng, hex_colors("efe9dc a07a56 7d8c8f"))
    half, post = 1.6 * size, 0.2 * size
    for rail in (0.3, 0.7):
        brush.rectangle(foot - half - rail * 1j * size, 2 * half, 0.09 * size, shade(paint, 0.82))
    for picket in np.arange(-half, half, 1.6 * post):
        corner = foot + float(picket)
        brush.polygon(
            (corner, corner - 0.85j * size, corner + post / 2 - 1j * size, corner + post - 0.85j * size, corner + post),
            paint,
        )


def draw_bench(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a park bench."""
    wood = shade(pick(rng, hex_colors("a9744f 8a5a3c 6f8f72")), 1.0)
    for side in (-0.75, 0.75):
        brush.capsule(foot + side * size, foot + (side - 0.95j) * size, 0.05 * size, 0.05 * size, (60, 60, 66))
    for height in (0.45, 0.72, 0.92):
        brush.rectangle(foot - complex(0.95, height) * size, 1.9 * size, 0.15 * size, wood)


def draw_boulder(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a boulder."""
    stone = pick(rng, hex_colors("8d8f94 a39a8c 77726d"))
    outline = [-0.8 + 0j, -0.7 - 0.5j, -0.25 - 0.85j, 0.35 - 0.75j, 0.75 - 0.35j, 0.8 + 0j]
    jitter = [complex(*rng.uniform(-0.08, 0.08, 2)) for _ in outline]
    corners = [foot + (point + shift) * size for point, shift in zip(outline, jitter, strict=True)]
    brush.polygon(corners, stone)
    brush.polygon((corners[1], corners[2], corners[3], foot - 0.35j * size), shade(stone, 1.14))


def draw_puddle(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a puddle or a bare patch."""
    tone = pick(rng, hex_colors("9fb8c4 8d7a5c 6f8a52"))
    brush.ellipse(foot, 1.9 * size, 0.4 * size, (*tone, 170))
    brush.ellipse(foot + 1.1 * size, 1.2 * size, 0.28 * size, (*tone, 170))


def draw_cone(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a traffic cone."""
    orange = pick(rng, hex_colors("e8743b d9534f f0a030"))
    brush.ellipse(foot, 0.5 * size, 0.14 * size, shade(orange, 0.8))
    brush.polygon((foot - 0.34 * size, foot + 0.34 * size, foot + (0.07 - 1j) * size, foot - (0.07 + 1j) * size), orange)
    brush.polygon([foot + point * size for point in (-0.25 - 0.32j, 0.25 - 0.32j, 0.17 - 0.6j, -0.17 - 0.6j)], (245, 240, 232))


def draw_flowers(brush: Brush, rng: np.random.Generator, foot: complex, size: float) -> None:
    """Draw a tuft of flowers."""
    petals = pick(rng, hex_colors("f4f1de e07a9a f2cc5c a78bd0"))
    for _ in range(8):
        head = foot + complex(rng.uniform(-0.9, 0.9), -rng.uniform(0.2, 0.9)) * size
        brush.capsule(complex(head.real, foot.imag), head, 0.05 * size, 0.05 * size, (84, 122, 66))
        brush.disc(head, 0.14 * size, petals)


STANDING = (
    (draw_tree, 95.0),
    (draw_tree, 80.0),
    (draw_fir, 90.0),
    (draw_house, 95.0),
    (draw_tower, 110.0),
    (draw_bush, 26.0),
    (draw_bush, 20.0),
    (draw_fence, 22.0),
    (draw_lamp_post, 105.0),
    (draw_bench, 22.0),
)
SCATTERED = ((draw_puddle, 16.0), (draw_cone, 18.0), (draw_flowers, 12.0), (draw_boulder, 14.0), (draw_bush, 18.0))
"""What may be outdoors, and its usual height in pixels: along the horizon, and nearer on the ground."""
