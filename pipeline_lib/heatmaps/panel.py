"""Draw a strip with label, prediction and confidence across the top of a frame, where player controls do not cover it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""matplotlib's bundled font, for the same result on every machine; includes accents and the two marks."""
BACKGROUND = (12, 14, 20, 190)
TEXT = (255, 255, 255, 255)
RIGHT = (134, 239, 172, 255)
WRONG = (253, 164, 142, 255)
RIGHT_MARK, WRONG_MARK = "\u2713", "\u2717"


class Panel:
    """Draw the strip on frames of one width; strips are cached by their text."""

    def __init__(self, width: int) -> None:
        """Choose font size and margin for frames of `width` pixels."""
        self._width = width
        self._size = max(9, round(width * 0.037))
        self._margin = max(3, round(width * 0.02))
        self._strip = lru_cache(maxsize=256)(self._lay_out)

    def draw(self, frame: Image.Image, true: str | None, predicted: str, confidence: float) -> None:
        """Draw the strip on an RGB frame in place; `confidence` is 0 to 1, and `true` is None if the label is unknown."""
        strip = self._strip(true, predicted, f"{confidence:.2f}")
        frame.paste(strip, (0, 0), strip)

    def _lay_out(self, true: str | None, predicted: str, confidence: str) -> Image.Image:
        """Return the strip: label and prediction with mark and colour on two lines, or only the prediction without a label."""
        rows = [(f"{predicted} ({confidence})", TEXT)]
        if true is not None:
            mark, colour = (RIGHT_MARK, RIGHT) if predicted == true else (WRONG_MARK, WRONG)
            rows = [(f"label: {true}", TEXT), (f"{mark} {predicted} ({confidence})", colour)]
        line_height = round(self._size * 1.4)
        strip = Image.new("RGBA", (self._width, len(rows) * line_height + self._margin), BACKGROUND)
        draw = ImageDraw.Draw(strip)
        text_width = self._width - 2 * self._margin
        for row, (text, fill) in enumerate(rows):
            middle = self._margin // 2 + (row + 0.5) * line_height
            draw.text((self._margin, middle), text, fill=fill, font=self._fitting_font(text, text_width), anchor="lm")
        return strip

    def _fitting_font(self, text: str, max_width: int) -> ImageFont.FreeTypeFont:
        """Return the font at its normal size, or smaller if the text would be wider than `max_width` pixels."""
        font = ImageFont.truetype(FONT, self._size)
        width = font.getlength(text)
        return font if width <= max_width else ImageFont.truetype(FONT, max(4, self._size * max_width / width))
