"""The strip of text across a frame: what the clip is, what the model takes this frame for, and how surely.

It lies at the top, where the article has it, and where a player's controls do not cover it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""Comes with matplotlib: the same letters on every machine, accents and the two marks included."""
BACKGROUND = (12, 14, 20, 190)
TEXT = (255, 255, 255, 255)
RIGHT = (134, 239, 172, 255)
WRONG = (253, 164, 142, 255)
RIGHT_MARK, WRONG_MARK = "\u2713", "\u2717"


class Panel:
    """Draws the strip for frames of one side length; a strip is laid out once for each distinct text."""

    def __init__(self, side: int) -> None:
        """Choose sizes for frames of `side` x `side` pixels."""
        self._width = side
        self._size = max(9, round(side * 0.037))
        self._margin = max(3, round(side * 0.02))
        self._strip = lru_cache(maxsize=256)(self._lay_out)

    def draw(self, frame: Image.Image, true: str | None, predicted: str, confidence: float) -> None:
        """Draw the strip over the top of an RGB frame, in place; `confidence` is 0 to 1, `true` None if it is not known."""
        strip = self._strip(true, predicted, f"{confidence:.2f}")
        frame.paste(strip, (0, 0), strip)

    def _lay_out(self, true: str | None, predicted: str, confidence: str) -> Image.Image:
        """Two lines: the true label, and the predicted one with its mark, its colour and its confidence; or one without."""
        rows = [(f"{predicted} ({confidence})", TEXT)]
        if true is not None:
            mark, colour = (RIGHT_MARK, RIGHT) if predicted == true else (WRONG_MARK, WRONG)
            rows = [(f"label: {true}", TEXT), (f"{mark} {predicted} ({confidence})", colour)]
        line_height = round(self._size * 1.4)
        strip = Image.new("RGBA", (self._width, len(rows) * line_height + self._margin), BACKGROUND)
        draw = ImageDraw.Draw(strip)
        room = self._width - 2 * self._margin
        for row, (text, fill) in enumerate(rows):
            middle = self._margin // 2 + (row + 0.5) * line_height
            draw.text((self._margin, middle), text, fill=fill, font=self._fitting_font(text, room), anchor="lm")
        return strip

    def _fitting_font(self, text: str, room: int) -> ImageFont.FreeTypeFont:
        """Return the font at its usual size, or smaller so that a long class name still fits."""
        font = ImageFont.truetype(FONT, self._size)
        width = font.getlength(text)
        return font if width <= room else ImageFont.truetype(FONT, max(4, self._size * room / width))
