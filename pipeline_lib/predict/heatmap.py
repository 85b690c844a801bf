"""Draw a model's attention, prediction and confidence over a video of any length.

Shape suffixes: H, W pixels, T frames, K grid side, 4 = x0, y0, x1, y1 as fractions of the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline_lib.heatmaps.rendering import CRF, ENCODER, Painter
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.prediction import Prediction
from pipeline_lib.video.decoders import read_arrays
from pipeline_lib.video.writing import VideoWriter

BOX_LINES = ((5, (12, 14, 20)), (2, (255, 255, 255)))
"""Widths in pixels and colours: a light line on a dark one is visible on any picture."""

LONGER_SIDE = 640
"""Longer side of the heatmap video in pixels; it keeps the aspect ratio of the original."""


def draw_heatmap(
    subsampled: Path,
    prediction: Prediction,
    model: str,
    destination: Path,
    params: HeatmapsParams,
    *,
    box_T4: np.ndarray | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> None:
    """Write a predicted video with attention and text, in constant memory.

    Args:
        subsampled: the file that `Predictor.predict` wrote.
        prediction: its result.
        model: name of the model whose attention to draw.
        destination: path of the MP4 to write.
        params: colours and scale; `side` and `aspect` are ignored.
        box_T4: a box to draw in each frame.
        on_frame: called with the number of frames drawn so far.

    Raises:
        ValueError: the model has no attention.
    """
    result = prediction.models[model]
    if result.attention_TKK is None:
        raise ValueError(f"{model} has no attention to draw")
    size = prediction.video.width, prediction.video.height
    params = params.model_copy(update={"side": LONGER_SIDE, "aspect": "original"})
    painter = Painter(params, result.attention_TKK.shape[1], size)
    width, height = painter.size
    rows = zip(result.attention_TKK, result.frame_labels, result.frame_confidence, strict=True)
    with (
        closing(read_arrays(subsampled, max_side=2 * LONGER_SIDE)) as arrays,  # type: ignore[type-var]  # it is a generator
        VideoWriter(destination, width=width, height=height, fps=prediction.fps, crf=CRF, **ENCODER) as writer,
    ):
        frames = chain.from_iterable(arrays)
        for number, (frame_HW3, (map_KK, label, confidence)) in enumerate(zip(frames, rows, strict=True), 1):
            picture = painter.colour(Image.fromarray(frame_HW3), map_KK)
            if box_T4 is not None:
                draw_box(picture, box_T4[number - 1])
            painter.label(picture, None, label, confidence)
            writer.write(np.asarray(picture))
            if on_frame:
                on_frame(number)


def draw_box(picture: Image.Image, box_4: np.ndarray) -> None:
    """Draw a box on a picture in place."""
    corners = (box_4 * np.tile(picture.size, 2)).round().tolist()
    for width, colour in BOX_LINES:
        inset = (BOX_LINES[0][0] - width) / 2
        x0, y0, x1, y1 = corners[0] + inset, corners[1] + inset, corners[2] - 1 - inset, corners[3] - 1 - inset
        ImageDraw.Draw(picture).rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=width)
