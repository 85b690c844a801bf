"""Data for `player.js` as JSON types: one clip, its models' attention maps and per-frame predictions.

A page with players includes `tokens.css` (colours), `player.css` and `player.js`, whose header documents its interface. The
browser renders attention from the K x K maps with the arithmetic of `pipeline_lib.heatmaps`, so one small video serves every
model, scale and colour map.
"""

# T frames of a clip, K grid side, S side of the picture in pixels, 4 = x0, y0, x1, y1 as fractions of the frame

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.errors import UserError
from pipeline_lib.heatmaps.maps import FULL_SHARE, UNIFORM, MapUpsampler
from pipeline_lib.heatmaps.overlay import FADE_LEVELS, palette
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.training.fusion import resample_maps

ASSETS = Path(__file__).parent
PLAYER_FILES = ("tokens.css", "player.css", "player.js")
"""Files in `ASSETS` that a page with players includes."""

SIDE = 160
"""Side in pixels at which the browser renders a map before scaling it to the frame."""

SAFE_COLORMAPS = ("viridis", "cividis")
"""Colour maps offered besides that of the parameters; safe for colour-blind viewers."""


@dataclass(frozen=True)
class ClipTube:
    """The boxes of a model's attention in a clip, and the actors'."""

    box_T4: np.ndarray
    iou_T: np.ndarray
    """IoU with the nearest actor's box; nan for a frame without one."""
    truth: Sequence[Sequence[float]]
    """Each frame's boxes of actors, one after the other; the same for all models."""


@dataclass(frozen=True)
class ClipModel:
    """One model's predictions and attention maps of a clip."""

    name: str
    attention_TKK: np.ndarray | None
    """Each frame's map sums to 1; None for a model without attention."""
    predicted: Sequence[str]
    """Predicted class of each frame."""
    confidence: Sequence[float]
    """Probability of that class, 0 to 1."""
    verdict: str
    """Predicted class of the clip; `verdict_confidence` is its mean probability."""
    verdict_confidence: float
    tube: ClipTube | None = None
    """None without boxes of actors."""
    importance_T: np.ndarray | None = None
    """Each frame's weight, which sum to 1; None for a model without attention over time."""


def player_style(grid: int, params: HeatmapsParams) -> dict[str, Any]:
    """Return the rendering settings of `grid` x `grid` maps for `player.js`.

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
    """Return a clip for `player.js`.

    Args:
        identity: name of the clip, unique on the page.
        label: true class, if known.
        video: URL of an H.264 file with exactly one frame a prediction, at `fps`.
        still: URL of a picture of the middle frame, shown until the video plays.
        size: width and height of both in pixels.
        fps: frames per second.
        grid: side of the attention maps; those of models with another grid are resampled to it.
        models: at least one; all with the same number of frames.

    Raises:
        UserError: models differ in their number of frames.
    """
    num_frames = len(models[0].predicted)
    for model in models:
        num_maps = num_frames if model.attention_TKK is None else len(model.attention_TKK)
        if (len(model.predicted), len(model.confidence), num_maps) != (num_frames,) * 3:
            raise UserError(
                f"{identity}: {model.name} has {len(model.predicted)} predictions, {len(model.confidence)} confidences "
                f"and {num_maps} maps, expected {num_frames} of each"
            )
    truth = next(([_rounded(boxes) for boxes in model.tube.truth] for model in models if model.tube), None)
    return {
        "id": identity,
        "label": label,
        "video": video,
        "still": still,
        "size": list(size),
        "fps": fps,
        "frames": num_frames,
        "grid": grid,
        "truth": truth,
        "models": [_describe_model(model, grid) for model in models],
    }


def _describe_model(model: ClipModel, grid: int) -> dict[str, Any]:
    maps_TKK = None if model.attention_TKK is None else resample_maps(model.attention_TKK, grid)
    return {
        "name": model.name,
        **_quantise(maps_TKK),
        "predicted": list(model.predicted),
        "confidence": [round(float(value), 3) for value in model.confidence],
        "verdict": model.verdict,
        "verdict_confidence": round(float(model.verdict_confidence), 4),
        "tube": _describe_tube(model.tube) if model.tube else None,
        "importance": None if model.importance_T is None else _relative(model.importance_T),
    }


def _relative(importance_T: np.ndarray) -> list[float]:
    """Return the weights in multiples of an equal weight."""
    return [round(float(weight), 3) for weight in importance_T * len(importance_T)]


def _describe_tube(tube: ClipTube) -> dict[str, Any]:
    iou = [None if np.isnan(value) else round(float(value), 3) for value in tube.iou_T]
    return {"boxes": [_rounded(box_4) for box_4 in tube.box_T4], "iou": iou}


def _rounded(edges: Iterable[float]) -> list[float]:
    return [round(float(edge), 3) for edge in edges]


def _quantise(attention_TKK: np.ndarray | None) -> dict[str, Any]:
    """Return maps as 16-bit levels between the clip's minimum and maximum."""
    if attention_TKK is None:
        return {"attention": None, "attention_scale": 0.0, "attention_offset": 0.0}
    offset = float(attention_TKK.min())
    scale = (float(attention_TKK.max()) - offset) / np.iinfo(np.uint16).max
    steps_TKK = np.rint((attention_TKK - offset) / scale) if scale else np.zeros_like(attention_TKK)
    return {"attention": _base64(steps_TKK, "<u2"), "attention_scale": scale, "attention_offset": offset}


def _base64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()
