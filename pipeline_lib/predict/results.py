"""Write predictions as `predictions.json`, `predictions.csv` (one row per video) and `frames.csv` (one row per frame)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline_lib.predict.prediction import ModelPrediction, Prediction

DIGITS = 6
"""Decimals of probabilities in files."""
COLUMNS = (
    "video",
    "label",
    "confidence",
    "label_by_mean",
    "confidence_by_mean",
    "top5",
    "frames",
    "seconds",
    "heatmap",
    "error",
)


def describe(prediction: Prediction, model: str) -> dict[str, Any]:
    """Return one model's prediction of a video as JSON types."""
    result = prediction.models[model]
    return {
        "label": result.label,
        "confidence": round(result.confidence, DIGITS),
        "label_by_mean": result.label_by_mean,
        "confidence_by_mean": round(result.confidence_by_mean, DIGITS),
        "top5": [{"label": label, "probability": round(probability, DIGITS)} for label, probability in result.top],
        "frames": prediction.video.num_frames,
        "seconds": round(prediction.video.num_frames / prediction.fps, 3),
        "fps": prediction.fps,
        "damaged": prediction.video.stderr is not None,
        "frame_labels": result.frame_labels,
        "frame_confidence": [round(value, DIGITS) for value in result.frame_confidence],
    }


class ResultFiles:
    """Context manager that writes the results of several videos. All files are complete at its end."""

    def __init__(self, folder: Path, header: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Prepare to write to an existing folder; `header` is included in the JSON file."""
        self.rows: list[dict[str, Any]] = []
        self._folder = folder
        self._header = dict(header)
        self._classes = classes

    def __enter__(self) -> Self:
        self._frames = (self._folder / "frames.csv").open("w", newline="", encoding="utf-8")
        self._table = csv.writer(self._frames)
        self._table.writerow(["video", "frame", "seconds", "label", "confidence", *self._classes])
        return self

    def add(self, row: dict[str, Any], prediction: ModelPrediction | None = None, fps: float = 1.0) -> None:
        """Add a video's row and, with `prediction`, the probabilities of its frames."""
        self.rows.append(row)
        if prediction:
            self._table.writerows(_frame_rows(row["video"], prediction, fps))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._frames.close()
        header = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in self._header.items()]
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in self.rows)  # one line per video
        text = "{" + ",\n".join([*header, f'"videos": [\n{rows}\n]']) + "}\n"
        (self._folder / "predictions.json").write_text(text, encoding="utf-8")
        with (self._folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            table.writeheader()
            table.writerows(row | {"top5": _in_words(row)} for row in self.rows)


def _frame_rows(video: str, prediction: ModelPrediction, fps: float) -> Iterator[list[Any]]:
    frames = zip(prediction.frame_labels, prediction.frame_confidence, prediction.probability_TC, strict=True)
    for number, (label, confidence, probability_C) in enumerate(frames):
        probabilities = [round(float(value), DIGITS) for value in probability_C]
        yield [video, number, round(number / fps, 3), label, round(confidence, DIGITS), *probabilities]


def _in_words(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{entry['label']} {entry['probability']:.4f}" for entry in row.get("top5", ()))
