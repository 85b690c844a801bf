"""Heatmap videos: the chosen clips of one model, with its attention, its prediction and its confidence frame by frame.

Shape suffixes: T frames of a clip, K grid side, H, W pixels.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from pipeline_lib.heatmaps.maps import MapUpsampler
from pipeline_lib.heatmaps.overlay import Overlay
from pipeline_lib.heatmaps.panel import Panel
from pipeline_lib.heatmaps.selection import RULES, select_clips
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.video.reading import read_frames
from pipeline_lib.video.writing import VideoWriter, write_gif

logger = logging.getLogger(__name__)

HEATMAPS = "heatmaps.json"
POSTER_SIDE = 320
CRF = 23
"""The frames are enlarged and the colours soft: better quality costs twice the time and shows nothing more."""


def render_heatmaps(
    evaluation: Path,
    video_path: Callable[[str], Path],
    directory: Path,
    params: HeatmapsParams,
    *,
    fps: float,
    on_clip: Callable[[], None] | None = None,
) -> dict[str, int]:
    """Draw the chosen clips of one model as MP4, GIF and poster, and list them in `heatmaps.json`.

    `heatmaps.json` holds `rules` (outcome to text), `notes` (what there was nothing to show of) and `clips`: a list, with
    the successes first, of {clip, video, class_name, predicted, confidence, correct, outcome, rule, frame_predicted,
    frame_confidence, mp4, gif, poster}; the last three are file names.

    Args:
        evaluation: folder with the model's `predictions.parquet` and `attention.h5`.
        video_path: where the subsampled video of a video id is.
        directory: existing folder to fill.
        params: how many clips, and how they are drawn.
        fps: frame rate of the subsampled videos.
        on_clip: called after each clip.

    Returns:
        The numbers of successes and failures drawn.

    Raises:
        ValueError: an unknown colour map, or a video with fewer frames than its clip.
        VideoError: a video that cannot be decoded.
    """
    predictions = pd.read_parquet(evaluation / "predictions.parquet")
    clips = select_clips(predictions, params).to_dict("records")
    attention_TKK_of = _load_attention(evaluation / "attention.h5", [clip["clip"] for clip in clips])
    renderer = ClipRenderer(params, fps)

    def render(number: int, clip: dict[str, Any]) -> dict[str, Any]:
        class_name = re.sub(r"[^\w.-]+", "_", clip["class_name"])
        name = f"{number:02d}_{clip['outcome']}_{class_name}"
        return renderer.render(clip, attention_TKK_of[clip["clip"]], video_path(clip["video"]), directory / name)

    entries = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for entry in pool.map(render, range(1, len(clips) + 1), clips):
            entries.append(entry)
            if on_clip:
                on_clip()
    notes = _explain_absence(predictions, params)
    _write_json(directory / HEATMAPS, {"rules": RULES, "notes": notes, "clips": entries})
    num_successes = sum(clip["outcome"] == "success" for clip in clips)
    return {"successes": num_successes, "failures": len(clips) - num_successes}


class ClipRenderer:
    """Draws clips with one set of parameters; safe to use from several threads."""

    def __init__(self, params: HeatmapsParams, fps: float) -> None:
        """Prepare the colour map and the text."""
        self._params = params
        self._fps = fps
        self._overlay = Overlay(params.colormap, params.opacity, params.percentile)
        self._panel = Panel(params.side)
        self._gif_panel = Panel(params.gif_side)

    def render(self, clip: Mapping[str, Any], attention_TKK: np.ndarray, source: Path, base: Path) -> dict[str, Any]:
        """Write `<base>.mp4`, `.gif` and `.jpg`; return the clip's entry for `heatmaps.json`."""
        mp4, gif, poster = (base.with_name(f"{base.name}.{extension}") for extension in ("mp4", "gif", "jpg"))
        side, num_frames = self._params.side, int(clip["valid_frames"])
        gif_frames = []
        with VideoWriter(mp4, width=side, height=side, fps=self._fps, crf=CRF) as writer:
            for number, (picture, small) in enumerate(self._draw_frames(clip, attention_TKK, source)):
                writer.write(np.asarray(picture))
                gif_frames.append(np.asarray(small))
                if number == num_frames // 2:
                    picture.resize((POSTER_SIDE, POSTER_SIDE)).save(poster, quality=80)
        write_gif(gif_frames, gif, fps=self._fps)
        return _describe(clip) | {"mp4": mp4.name, "gif": gif.name, "poster": poster.name}

    def _draw_frames(
        self, clip: Mapping[str, Any], attention_TKK: np.ndarray, source: Path
    ) -> Iterator[tuple[Image.Image, Image.Image]]:
        """Yield each valid frame with its attention and text, at full side and at the side of the GIF."""
        params = self._params
        upsampler = MapUpsampler(attention_TKK.shape[1], params.side, params.sigma * params.side)
        for number, frame_HW3 in enumerate(_clip_frames(clip, source)):
            picture = Image.fromarray(frame_HW3).resize((params.side, params.side))
            self._overlay.draw(picture, upsampler.levels(attention_TKK[number]))
            small = picture.resize((params.gif_side, params.gif_side), Image.Resampling.BOX)
            text = (clip["class_name"], clip["frame_predicted"][number], clip["frame_confidence"][number])
            self._panel.draw(picture, *text)
            # The text is set anew for the small picture: shrunk, it could not be read.
            self._gif_panel.draw(small, *text)
            yield picture, small


def _clip_frames(clip: Mapping[str, Any], source: Path) -> Iterator[np.ndarray]:
    """Yield the clip's valid frames as they are stored; those before the clip are decoded but never scaled."""
    first_frame = int(clip["clip"].rpartition("#")[2])
    num_frames, num_read = int(clip["valid_frames"]), 0
    with closing(read_frames(source)) as frames:  # type: ignore[type-var]  # it is a generator
        for frame_HW3 in islice(frames, first_frame, first_frame + num_frames):
            num_read += 1
            yield frame_HW3
    if num_read < num_frames:
        raise ValueError(
            f"{clip['clip']}: {source} ends after {num_read} of the clip's {num_frames} frames; "
            "make the video again with --refresh subsample"
        )


def _load_attention(path: Path, clips: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the maps (T, K, K) of the clips."""
    with h5py.File(path, "r") as file:
        row_of = {clip: row for row, clip in enumerate(file["clip"].asstr()[:])}
        return {clip: file["attention"][row_of[clip]] for clip in clips}


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
    """Say why there is nothing where something was asked for."""
    notes = []
    if params.successes and not predictions["correct"].any():
        notes.append("successes: none to show, no clip of the test part is right")
    if params.failures and predictions["correct"].all():
        notes.append("failures: none to show, no clip of the test part is wrong")
    return notes


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
