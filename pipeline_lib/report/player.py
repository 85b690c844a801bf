"""What `player.js` draws: one clip, the attention of its models, and their predictions frame by frame, as JSON types.

A page that plays clips includes `tokens.css` (the colours), `player.css` and `player.js`, whose head tells how it is called.
The browser draws the attention from the K x K maps, by the arithmetic of `pipeline_lib.heatmaps`: one small video serves
every model, scale and colour map.
"""

# T frames of a clip, K grid side, S side of the picture in pixels

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.errors import UserError
from pipeline_lib.heatmaps.maps import FULL_SHARE, UNIFORM, MapUpsampler
from pipeline_lib.heatmaps.overlay import FADE_LEVELS, palette
from pipeline_lib.params import HeatmapsParams

ASSETS = Path(__file__).parent
PLAYER_FILES = ("tokens.css", "player.css", "player.js")
"""What a page needs to play clips; in `ASSETS`."""

SIDE = 160
"""Pixels of the picture of a map, which the browser stretches over the frame: smoother than these it is not."""

SAFE_COLORMAPS = ("viridis", "cividis")
"""Offered beside the parameters' own: they can be read in every kind of colour blindness."""


@dataclass(frozen=True)
class ClipModel:
    """What one model made of a clip."""

    name: str
    attention_TKK: np.ndarray | None
    """A frame's maps add up to 1; None of a model without attention."""
    predicted: Sequence[str]
    """The class of each frame."""
    confidence: Sequence[float]
    """Its probability, 0 to 1."""
    verdict: str
    """The class of the clip, and its mean probability."""
    verdict_confidence: float


def player_style(grid: int, params: HeatmapsParams) -> dict[str, Any]:
    """Return how maps of `grid` x `grid` cells are drawn, as `player.js` wants it.

    Raises:
        UserError: matplotlib does not know the parameters' colour map.
    """
    upsample_SK, smooth_SK = MapUpsampler(grid, SIDE, params.sigma * SIDE).weights
    return {
        "grid": grid,
        "side": SIDE,
        "upsample": _base64(upsample_SK, "<f4"),
        "smooth": _base64(smooth_SK, "<f4"),
        "scale": params.scale,
        "percentile": params.percentile,
        "opacity": params.opacity,
        "fade_levels": FADE_LEVELS,
        "uniform": UNIFORM,
        "full_share": FULL_SHARE,
        "colormap": params.colormap,
        "colormaps": {name: _base64(palette(name), "u1") for name in dict.fromkeys((params.colormap, *SAFE_COLORMAPS))},
    }


def describe_clip(
    identity: str,
    *,
    label: str | None,
    video: str,
    still: str | None,
    size: tuple[int, int],
    fps: float,
    grid: int,
    models: Sequence[ClipModel],
) -> dict[str, Any]:
    """Return a clip as `player.js` wants it.

    Args:
        identity: what the clip is called; no two of a page are the same.
        label: the true class, if known.
        video: address of an H.264 file that has exactly one frame for each prediction, at `fps`.
        still: address of a picture of its middle frame, shown until it plays.
        size: width and height of both in pixels; their room is kept until they are loaded.
        fps: frames a second.
        grid: side of the models' attention maps.
        models: at least one; all with as many frames.

    Raises:
        UserError: models that differ in their number of frames, or maps of another size.
    """
    num_frames = len(models[0].predicted)
    for model in models:
        shape = (num_frames, grid, grid) if model.attention_TKK is None else model.attention_TKK.shape
        if (len(model.predicted), len(model.confidence), shape) != (num_frames, num_frames, (num_frames, grid, grid)):
            raise UserError(
                f"{identity}: {model.name} has {len(model.predicted)} predictions, {len(model.confidence)} confidences "
                f"and maps {shape}, expected {num_frames} frames of {grid} x {grid} cells"
            )
    return {
        "id": identity,
        "label": label,
        "video": video,
        "still": still,
        "size": list(size),
        "fps": fps,
        "frames": num_frames,
        "grid": grid,
        "models": [_describe_model(model) for model in models],
    }


def _describe_model(model: ClipModel) -> dict[str, Any]:
    return {
        "name": model.name,
        **_quantise(model.attention_TKK),
        "predicted": list(model.predicted),
        "confidence": [round(float(value), 3) for value in model.confidence],
        "verdict": model.verdict,
        "verdict_confidence": round(float(model.verdict_confidence), 4),
    }


def _quantise(attention_TKK: np.ndarray | None) -> dict[str, Any]:
    """Return maps as 16-bit steps between the clip's least and its most attention."""
    if attention_TKK is None:
        return {"attention": None, "attention_scale": 0.0, "attention_offset": 0.0}
    offset = float(attention_TKK.min())
    scale = (float(attention_TKK.max()) - offset) / np.iinfo(np.uint16).max
    steps_TKK = np.rint((attention_TKK - offset) / scale) if scale else np.zeros_like(attention_TKK)
    return {"attention": _base64(steps_TKK, "<u2"), "attention_scale": scale, "attention_offset": offset}


def _base64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()
