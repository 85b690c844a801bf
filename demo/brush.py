"""Anti-aliased drawing on parts of an image: points are complex numbers in pixels, x to the right, y down."""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from PIL import Image, ImageDraw

Color = tuple[int, ...]
"""Red, green, blue in 0..255, and alpha where the colour is translucent."""

HALF_CIRCLE = tuple(cmath.rect(1, math.pi * step / 6 - math.pi / 2) for step in range(7))


class Brush:
    """Draws on an enlarged copy of a part of an image; shrinking it afterwards smooths the edges."""

    def __init__(self, image: Image.Image, origin: complex, factor: int) -> None:
        """Draw on `image`, whose top left pixel stands for `origin` and whose pixels are 1/`factor` wide."""
        self._opaque = ImageDraw.Draw(image)
        self._translucent = ImageDraw.Draw(image, "RGBA")
        self._origin = origin
        self._factor = factor

    def polygon(self, points: Iterable[complex], color: Color) -> None:
        """Fill the polygon with these corners."""
        x, y, factor = self._origin.real, self._origin.imag, self._factor
        draw = self._opaque if len(color) == 3 else self._translucent
        draw.polygon([((point.real - x) * factor, (point.imag - y) * factor) for point in points], fill=color)

    def capsule(self, start: complex, end: complex, start_radius: float, end_radius: float, color: Color) -> None:
        """Fill a limb: the hull of two discs of nearly equal size. Equal ends give a disc."""
        span = end - start
        ahead = span / abs(span) if span else 1
        back, front = -start_radius * ahead, end_radius * ahead
        self.polygon([start + back * step for step in HALF_CIRCLE] + [end + front * step for step in HALF_CIRCLE], color)

    def disc(self, center: complex, radius: float, color: Color) -> None:
        """Fill a circle."""
        self.ellipse(center, radius, radius, color)

    def ellipse(self, center: complex, half_width: float, half_height: float, color: Color) -> None:
        """Fill an ellipse with upright axes."""
        middle, reach = (center - self._origin) * self._factor, complex(half_width, half_height) * self._factor
        draw = self._opaque if len(color) == 3 else self._translucent
        first, last = middle - reach, middle + reach
        draw.ellipse((first.real, first.imag, last.real, last.imag), fill=color)

    def rectangle(self, corner: complex, width: float, height: float, color: Color) -> None:
        """Fill a rectangle given by its top left corner."""
        self.polygon((corner, corner + width, corner + complex(width, height), corner + 1j * height), color)


@contextmanager
def brush_on(image: Image.Image, box: tuple[float, float, float, float], factor: int = 3) -> Iterator[Brush | None]:
    """Lend a brush for the part of `image` inside `box` (x0, y0, x1, y1 in pixels); None if the two do not meet."""
    x0, y0 = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    x1, y1 = min(math.ceil(box[2]), image.width), min(math.ceil(box[3]), image.height)
    if x0 >= x1 or y0 >= y1:
        yield None
        return
    size = ((x1 - x0) * factor, (y1 - y0) * factor)
    enlarged = image.crop((x0, y0, x1, y1)).resize(size, Image.Resampling.NEAREST)
    yield Brush(enlarged, complex(x0, y0), factor)
    image.paste(enlarged.reduce(factor), (x0, y0))


def mix(first: Color, second: Color, share: float) -> Color:
    """Return the colour `share` of the way from the first to the second."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def shade(color: Color, factor: float) -> Color:
    """Return the colour darker (`factor` < 1) or lighter."""
    return tuple(min(255, round(value * factor)) for value in color[:3])


def hex_colors(text: str) -> tuple[Color, ...]:
    """Return the colours of a list such as `e63946 457b9d`."""
    return tuple(tuple(bytes.fromhex(word)) for word in text.split())
