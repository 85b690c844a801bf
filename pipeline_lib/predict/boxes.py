"""Box the actor in predicted videos by the model's attention."""

# T frames, C classes, K grid side, 4 = x0, y0, x1, y1 as fractions of the frame

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline_lib.evaluate.localisation import boxes_of_maps
from pipeline_lib.predict.prediction import ModelPrediction

COLUMNS = ("video", "time_seconds", "x0", "y0", "x1", "y1", "score", "label")


def find_boxes(prediction: ModelPrediction) -> np.ndarray:
    """Return box_T4 around the strongest attention of each frame, smoothed over five frames.

    Raises:
        ValueError: the model has no attention.
    """
    if prediction.attention_TKK is None:
        raise ValueError("no attention to box")
    return boxes_of_maps(prediction.attention_TKK)


class BoxFile:
    """Context manager that writes `boxes.csv`: a row a frame, with the video's label and its probability in the frame."""

    def __init__(self, folder: Path) -> None:
        """Prepare to write to an existing folder."""
        self._path = folder / "boxes.csv"

    def __enter__(self) -> Self:
        self._file = self._path.open("w", newline="", encoding="utf-8")
        self._table = csv.writer(self._file)
        self._table.writerow(COLUMNS)
        return self

    def add(self, video: str, box_T4: np.ndarray, prediction: ModelPrediction, fps: float) -> None:
        """Add a video's boxes."""
        score_T = prediction.probability_TC[:, prediction.classes.index(prediction.label)]
        for number, (box_4, score) in enumerate(zip(box_T4.tolist(), score_T.tolist(), strict=True)):
            corners = [round(edge, 4) for edge in box_4]
            self._table.writerow([video, round(number / fps, 3), *corners, round(score, 6), prediction.label])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
