"""Render heatmap videos of one model: clips with its attention, prediction and confidence for each frame.

Shape suffixes: T frames of a clip, K grid side, H, W pixels, S longer side of a picture in pixels.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from pipeline_lib.artifacts import layout
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.errors import UserError
from pipeline_lib.heatmaps.maps import MapUpsampler
from pipeline_lib.heatmaps.overlay import Overlay
from pipeline_lib.heatmaps.panel import Panel
from pipeline_lib.heatmaps.selection import RULES, select_clips
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.video.reading import read_frames
from pipeline_lib.video.writing import VideoWriter, write_gif

logger = logging.getLogger(__name__)

POSTER_SIDE = 320
PLAIN_HEIGHT = 240
CRF = 23
ENCODER = {"preset": "ultrafast", "x264_params": "partitions=i4x4:subme=1:deblock=0,0"}
"""As for subsampled videos (docs/decisions/2026-11-29-subsampling.md), but with deblocking, because people watch these."""
PLAIN_CRF = 30
ENDINGS = {"mp4": ".mp4", "gif": ".gif", "poster": ".jpg", "plain": "_plain.mp4", "still": "_still.jpg"}
"""Keys of a clip's files in `heatmaps.json`, and the endings of their names."""

Size = tuple[int, int]
"""Width and height in pixels, as in Pillow."""


def render_heatmaps(
    evaluation: Path,
    video_path: Callable[[str], Path],
    directory: Path,
    params: HeatmapsParams,
    *,
    fps: float,
    on_clip: Callable[[str], None] | None = None,
) -> dict[str, int]:
    """Render the selected clips of one model as MP4, GIF and poster, and list them in `heatmaps.json`.

    `heatmaps.json` holds `grid`, `fps`, `rules` (text by outcome), `notes` (on outcomes without clips) and `clips`. The latter
    is a list, successes first, of {clip, video, class_name, predicted, confidence, correct, outcome, rule, frame_predicted,
    frame_confidence, mp4, gif, poster, plain, still}. The last five are file names. `plain` is a small version of the clip
    with nothing drawn on it and `still` its middle frame; neither depends on the model.

    Args:
        evaluation: folder with the model's `predictions.parquet` and `attention.h5`.
        video_path: returns the path of a subsampled video by its id.
        directory: existing folder to write to.
        params: number of clips, and style.
        fps: frame rate of the subsampled videos.
        on_clip: called with the id of each finished clip.

    Returns:
        the numbers of successes and failures rendered.

    Raises:
        UserError: an unknown colour map, or a video with fewer frames than its clip.
        VideoError: a video that cannot be decoded.
    """
    predictions = pd.read_parquet(evaluation / layout.PREDICTIONS)
    clips = select_clips(predictions, params).to_dict("records")
    grid, attention_TKK_of = _load_attention(evaluation / layout.ATTENTION, [clip["clip"] for clip in clips])
    renderer = ClipRenderer(params, grid, fps)

    def render(number: int, clip: Mapping[Any, Any]) -> dict[str, Any]:
        class_name = re.sub(r"[^\w.-]+", "_", clip["class_name"])
        name = f"{number:02d}_{clip['outcome']}_{class_name}"
        return renderer.render(clip, attention_TKK_of[clip["clip"]], video_path(clip["video"]), directory / name)

    entries = []
    with ThreadPoolExecutor(num_cores(), thread_name_prefix="heatmaps") as pool:
        futures = [pool.submit(render, number, clip) for number, clip in enumerate(clips, 1)]
        try:
            for future in futures:
                entries.append(future.result())
                if on_clip:
                    on_clip(entries[-1]["clip"])
        finally:
            for future in futures:
                future.cancel()
    notes = _explain_absence(predictions, params)
    content = {"grid": grid, "fps": fps, "rules": RULES, "notes": notes, "clips": entries}
    _write_json(directory / layout.HEATMAPS, content)
    num_successes = sum(clip["outcome"] == "success" for clip in clips)
    return {"successes": num_successes, "failures": len(clips) - num_successes}


class Painter:
    """Draw attention and text over frames of one size; thread-safe."""

    def __init__(self, params: HeatmapsParams, grid: int, size: Size) -> None:
        """Prepare to draw maps of `grid` x `grid` cells over frames of `size`."""
        self.size = fitting(size, params.side) if params.aspect == "original" else (params.side, params.side)
        self.small_size = fitting(self.size, params.gif_side)
        longer = max(self.size)
        upsampler = MapUpsampler(grid, longer, params.sigma * longer)
        is_article = params.scale == "article"
        self._levels = upsampler.levels if is_article else upsampler.share_levels
        self._overlay = Overlay(params.colormap, params.opacity, params.percentile if is_article else None)
        self._panels = {width: Panel(width) for width in (self.size[0], self.small_size[0])}

    def colour(self, frame: Image.Image, map_KK: np.ndarray) -> Image.Image:
        """Return the frame, resized to the painter's size, with its attention."""
        picture = frame.resize(self.size)
        self._overlay.draw(picture, _fitted(self._levels(map_KK), self.size))
        return picture

    def shrink(self, picture: Image.Image) -> Image.Image:
        """Return a small copy. Label it after shrinking, so that the text is readable."""
        return picture.resize(self.small_size, Image.Resampling.BOX, reducing_gap=1.0)

    def label(self, picture: Image.Image, true: str | None, predicted: str, confidence: float) -> None:
        """Draw the strip of text on a picture of either size in place."""
        self._panels[picture.width].draw(picture, true, predicted, confidence)


def fitting(size: Size, longer: float) -> Size:
    """Return an even width and height of the same aspect ratio whose longer side is about `longer` pixels."""
    width, height = (max(2, round(pixels * longer / max(size) / 2) * 2) for pixels in size)
    return width, height


def _fitted(levels_SS: np.ndarray, size: Size) -> np.ndarray:
    """Return square levels resized to `size`, like the square frame that the network saw."""
    return levels_SS if levels_SS.shape == size[::-1] else np.asarray(Image.fromarray(levels_SS).resize(size))


class ClipRenderer:
    """Render clips with one set of parameters; thread-safe."""

    def __init__(self, params: HeatmapsParams, grid: int, fps: float) -> None:
        """Prepare to render maps of `grid` x `grid` cells at `fps` frames per second."""
        self._fps = fps
        # A wide frame that is resized to a square keeps the resolution of its shorter side.
        self._max_side = 2 * params.side
        self._painter = lru_cache(maxsize=8)(partial(Painter, params, grid))

    def render(self, clip: Mapping[str, Any], attention_TKK: np.ndarray, source: Path, base: Path) -> dict[str, Any]:
        """Write `<base>.mp4`, `.gif`, `.jpg`, `_plain.mp4` and `_still.jpg`; return the clip's entry in `heatmaps.json`."""
        files = {name: base.with_name(f"{base.name}{ending}") for name, ending in ENDINGS.items()}
        frames = (Image.fromarray(frame_HW3) for frame_HW3 in _clip_frames(clip, source, self._fps, self._max_side))
        first = next(frames)
        painter, plain_size = self._painter(first.size), fitting_plain(first.size)
        gif_frames = []
        with (
            self._writer(files["mp4"], painter.size, CRF) as writer,
            self._writer(files["plain"], plain_size, PLAIN_CRF) as plain_writer,
        ):
            for number, frame in enumerate(chain([first], frames)):
                picture = painter.colour(frame, attention_TKK[number])
                small = painter.shrink(picture)
                painter.label(picture, *_text(clip, number))
                painter.label(small, *_text(clip, number))
                plain = frame.resize(plain_size)
                writer.write(np.asarray(picture))
                plain_writer.write(np.asarray(plain))
                gif_frames.append(np.asarray(small))
                if number == int(clip["valid_frames"]) // 2:
                    picture.resize(fitting(painter.size, POSTER_SIDE)).save(files["poster"], quality=80)
                    plain.save(files["still"], quality=80)
        write_gif(gif_frames, files["gif"], fps=self._fps)
        return _describe(clip) | {name: path.name for name, path in files.items()}

    def _writer(self, path: Path, size: Size, crf: int) -> VideoWriter:
        return VideoWriter(path, width=size[0], height=size[1], fps=self._fps, crf=crf, **ENCODER)


def fitting_plain(size: Size) -> Size:
    """Return an even width and height of the same aspect ratio and at most `PLAIN_HEIGHT` pixels high."""
    return fitting(size, max(size) * min(1.0, PLAIN_HEIGHT / size[1]))


def _text(clip: Mapping[str, Any], frame: int) -> tuple[str, str, float]:
    return clip["class_name"], clip["frame_predicted"][frame], clip["frame_confidence"][frame]


def _clip_frames(clip: Mapping[str, Any], source: Path, fps: float, max_side: int) -> Iterator[np.ndarray]:
    """Yield the clip's valid frames, scaled down if a side is longer than `max_side`."""
    first_frame = int(clip["clip"].rpartition("#")[2])
    num_frames, num_read = int(clip["valid_frames"]), 0
    start_seconds = max(0.0, (first_frame - 0.5) / fps)
    with closing(read_frames(source, start_seconds=start_seconds, max_side=max_side)) as frames:  # type: ignore[type-var]  # it is a generator
        for frame_HW3 in islice(frames, num_frames):
            num_read += 1
            yield frame_HW3
    if num_read < num_frames:
        raise UserError(
            f"{clip['clip']}: {source} ends after {num_read} of the clip's {num_frames} frames; run with `--refresh subsample`"
        )


def _load_attention(path: Path, clips: Sequence[str]) -> tuple[int, dict[str, np.ndarray]]:
    """Return K and the maps (T, K, K) of the clips."""
    with h5py.File(path, "r") as file:
        row_of = {clip: row for row, clip in enumerate(file["clip"].asstr()[:])}
        return file["attention"].shape[2], {clip: file["attention"][row_of[clip]] for clip in clips}


def _describe(clip: Mapping[str, Any]) -> dict[str, Any]:
    names = ("clip", "video", "class_name", "predicted", "outcome", "rule")
    frames = range(int(clip["valid_frames"]))
    return {name: clip[name] for name in names} | {
        "confidence": float(clip["confidence"]),
        "correct": bool(clip["correct"]),
        "frame_predicted": [str(clip["frame_predicted"][frame]) for frame in frames],
        "frame_confidence": [round(float(clip["frame_confidence"][frame]), 4) for frame in frames],
    }


def _explain_absence(predictions: pd.DataFrame, params: HeatmapsParams) -> list[str]:
    """Return a note for each requested outcome that no clip has."""
    notes = []
    if params.successes and not predictions["correct"].any():
        notes.append("successes: none to show, no clip of the test split is right")
    if params.failures and predictions["correct"].all():
        notes.append("failures: none to show, no clip of the test split is wrong")
    return notes


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
