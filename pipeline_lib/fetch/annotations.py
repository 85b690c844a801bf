"""Boxes of actors in the files that data sets publish, converted to the project's table.

- UCF101-24's corrected annotations (Singh et al. 2017), `pyannot.pkl` or `finalAnnots.mat`: pixels of 320 x 240 frames.
- J-HMDB (Jhuang et al. 2013), the folder of `<class>/<video>/puppet_mask.mat`: the box is tight around the mask. Its videos are
  parts of HMDB-51's under the same names, so its masks fit J-HMDB's own videos only.

Frames are numbered in these files. Their times come from each video's frame rate, and videos of other lengths are left out.
"""

# R boxes of a video, T frames, H, W pixels, 4 = x0, y0, x1, y1 as fractions of the frame

from __future__ import annotations

import csv
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from pipeline_lib.artifacts import layout
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.errors import UserError
from pipeline_lib.fetch.tables import BOXES_HEADER
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import probe

logger = logging.getLogger(__name__)

UCF101_SIZE = (320, 240)
MASK_FILE = "puppet_mask.mat"

MAX_FRAMES_OFF = 2
"""A video may declare this many frames more or less than were annotated, since headers are wrong by one or two."""

PICKLED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""What pickles of arrays need; anything else in one could run code."""


UNREADABLE = (pickle.UnpicklingError, MatReadError, AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError)
"""What reading a file of another kind may raise."""


@dataclass(frozen=True)
class VideoBoxes:
    """The annotated boxes of one video."""

    name: str
    """`<class>/<file name without suffix>`."""
    num_frames: int
    frame_R: np.ndarray
    """Number of the box's frame, from 0."""
    box_R4: np.ndarray


def read_annotations(boxes: str | None) -> list[VideoBoxes] | None:
    """Read annotations in a data set's own format; return None for the project's table, and where there is nothing to read.

    Raises:
        UserError: the file is not what its name says, or the folder has no masks.
    """
    path = Path(boxes).expanduser() if boxes else None
    if not path or not path.exists():
        return None
    read: Callable[[Path], Iterator[VideoBoxes]] | None = _read_jhmdb if path.is_dir() else READERS.get(path.suffix.lower())
    if not read:
        return None
    try:
        annotations = list(read(path))
    except UNREADABLE as error:
        expected = f"J-HMDB's masks ({MASK_FILE})" if path.is_dir() else "UCF101-24's corrected annotations"
        raise UserError(f"fetch.boxes: {boxes}: cannot be read as {expected} ({error})") from None
    if not annotations:
        raise UserError(f"fetch.boxes: {boxes}: no {MASK_FILE} in this folder; give J-HMDB's folder puppet_mask, or a file")
    return annotations


def write_annotated_boxes(
    annotations: Sequence[VideoBoxes], boxes: str, root: Path, videos: Sequence[str], directory: Path
) -> None:
    """Write `directory/boxes.csv` with the boxes of the collection's videos, and warn about those that do not fit.

    Args:
        annotations: what `read_annotations` read from `boxes`.
        boxes: for messages.
        root: folder whose subfolders are the classes.
        videos: the collection's videos, `<class>/<file>`.
        directory: existing folder to write to.

    Raises:
        UserError: no video of the collection has boxes that fit it.
    """
    known = {annotation.name: annotation for annotation in annotations}
    named = [video for video in videos if video.rpartition(".")[0] in known]
    with ThreadPoolExecutor(num_cores()) as pool:
        tables = list(pool.map(lambda video: _rows(root / video, video, known[video.rpartition(".")[0]]), named))
    unfit = [video for video, rows in zip(named, tables, strict=True) if rows is None]
    if len(unfit) == len(named):
        found = f"{unfit[0]} has another number of frames than its boxes" if unfit else f"names must be like {videos[0]}"
        raise UserError(f"fetch.boxes: {boxes}: fits none of the collection's videos: {found}")
    logger.info("fetch.boxes: boxes of %d of %d videos", len(named) - len(unfit), len(videos))
    if unfit:
        logger.warning(
            "fetch.boxes: left out %d of %d videos with another number of frames than their boxes: %s",
            len(unfit), len(named), unfit[0],
        )  # fmt: skip
    with (directory / layout.BOXES).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([BOXES_HEADER, *(row for rows in tables for row in rows or ())])


def _rows(path: Path, video: str, annotation: VideoBoxes) -> list[list[str]] | None:
    """Return a video's rows of the table, or None if it cannot be opened or has another number of frames."""
    try:
        info = probe(path)
    except VideoError:
        return None
    if not abs(info.seconds * info.fps - annotation.num_frames) < MAX_FRAMES_OFF + 0.5:  # also for nan
        return None
    box_R4 = annotation.box_R4.clip(0, 1).round(4)
    shown_R = (box_R4[:, 2:] > box_R4[:, :2]).all(axis=1)
    boxes = sorted(zip(annotation.frame_R[shown_R].tolist(), box_R4[shown_R].tolist(), strict=True), key=lambda row: row[0])
    return [[video, f"{frame / info.fps:.3f}", *(f"{edge:.4f}" for edge in box)] for frame, box in boxes]


def _read_pickle(path: Path) -> Iterator[VideoBoxes]:
    """Read `pyannot.pkl`: {`class/video`: {numf, annotations: [{sf, boxes}]}}; a tube begins at frame `sf`, counted from 0."""
    with path.open("rb") as file:
        content: Mapping[str, Any] = _ArrayUnpickler(file, encoding="latin1").load()
    for name, video in content.items():
        yield _of_tubes(name, video["numf"], [(tube["sf"], tube["boxes"]) for tube in video["annotations"]])


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions that arrays are made with."""
        module = module.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of boxes")
        return super().find_class(module, name)


def _read_mat(path: Path) -> Iterator[VideoBoxes]:
    """Read `finalAnnots.mat`: the struct array `annot` with the number of frames, `name` and `tubes`, whose `sf` is from 1."""
    for video in np.atleast_1d(loadmat(path, squeeze_me=True, struct_as_record=False)["annot"]):
        tubes = [(int(tube.sf) - 1, tube.boxes) for tube in np.atleast_1d(video.tubes)]
        yield _of_tubes(video.name, getattr(video, video._fieldnames[0]), tubes)


READERS: Mapping[str, Callable[[Path], Iterator[VideoBoxes]]] = {".pkl": _read_pickle, ".mat": _read_mat}


def _of_tubes(name: str, num_frames: Any, tubes: Sequence[tuple[Any, Any]]) -> VideoBoxes:
    """Return the boxes of tubes: first frame and x, y, width, height in pixels of each frame."""
    box_R4 = np.concatenate([np.reshape(np.asarray(boxes, dtype=np.float64), (-1, 4)) for _, boxes in tubes])
    frame_R = np.concatenate([int(first) + np.arange(np.size(boxes) // 4) for first, boxes in tubes])
    box_R4[:, 2:] += box_R4[:, :2]
    return VideoBoxes(str(name), int(num_frames), frame_R, box_R4 / np.tile(UCF101_SIZE, 2))


def _read_jhmdb(folder: Path) -> Iterator[VideoBoxes]:
    """Read J-HMDB's masks: `part_mask` (H, W, T), not zero on the actor."""
    for path in sorted(folder.rglob(MASK_FILE)):
        inside_HWT = loadmat(path)["part_mask"] > 0
        num_frames = inside_HWT.shape[2]
        frame_R = np.flatnonzero(inside_HWT.any(axis=(0, 1)))
        x0_R, x1_R = _ends(inside_HWT.any(axis=0)[:, frame_R])
        y0_R, y1_R = _ends(inside_HWT.any(axis=1)[:, frame_R])
        yield VideoBoxes("/".join(path.parts[-3:-1]), num_frames, frame_R, np.stack([x0_R, y0_R, x1_R, y1_R], axis=1))


def _ends(inside_PR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the pixels inside begin and end, as fractions."""
    pixels = len(inside_PR)
    return inside_PR.argmax(axis=0) / pixels, 1 - inside_PR[::-1].argmax(axis=0) / pixels
