"""`har predict`: predict videos; write a table, JSON, CSV and heatmap videos."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from flows.output import FreeNames, Step, new_folder, show_progress
from flows.terminal import console, say
from pipeline_lib.addresses import redact
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.errors import UserError
from pipeline_lib.predict.boxes import BoxFile, find_boxes
from pipeline_lib.predict.heatmap import draw_heatmap
from pipeline_lib.predict.results import ResultFiles, describe
from pipeline_lib.predict.videos import RequestedVideo, find_videos
from pipeline_lib.video.ffmpeg import VideoError
from tasks.mlflow.loading import Opened, open_predictor


def predict(
    arguments: Sequence[str],
    *,
    source: str,
    workspace: Workspace,
    output: Path | None,
    overlap: float,
    heatmaps: bool,
    boxes: bool = False,
) -> int:
    """Predict every video; print and write the results, and with `boxes` where its attention boxes the actor.

    Returns:
        0, or 1 if a video could not be downloaded or decoded; the others are predicted anyway.

    Raises:
        UserError: a video or model does not exist, the output folder is not empty, or the overlap is out of range.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap {overlap:g}: must be 0 or more, and less than 1")
    videos = find_videos(arguments)
    opened = open_predictor(source, workspace)
    folder = new_folder(output or _unused(workspace.folder / "predictions" / time.strftime("%Y-%m-%d_%H%M%S")))
    say(f"model       {opened.title}")
    if opened.note:
        say(f"            {opened.note}")
    if (heatmaps or boxes) and not opened.predictor.attends(opened.model):
        wanted = " or ".join(name for name, asked in (("heatmap videos", heatmaps), ("boxes", boxes)) if asked)
        say(f"            {opened.model} has no attention, so there are no {wanted}")
        heatmaps = boxes = False
    header = {"model": opened.title, "source": redact(source), "overlap": overlap}
    with ExitStack() as stack:
        files = stack.enter_context(ResultFiles(folder, header, opened.predictor.classes(opened.model)))
        box_file = stack.enter_context(BoxFile(folder)) if boxes else None
        step = stack.enter_context(show_progress())
        job = _Job(opened, folder, overlap, heatmaps, box_file, step)
        for number, video in enumerate(videos, 1):
            job.run(video, files, f"{number} of {len(videos)}")
    _say_rows(files.rows)
    say(f"results     {folder}")
    return int(any(row["error"] for row in files.rows))


@dataclass
class _Job:
    """Predicts videos one after the other."""

    opened: Opened
    folder: Path
    overlap: float
    heatmaps: bool
    box_file: BoxFile | None
    step: Step
    names: FreeNames = field(default_factory=FreeNames)
    """Names of heatmap videos."""

    def run(self, video: RequestedVideo, files: ResultFiles, place: str) -> None:
        """Predict one video and add its row or its error; `place` is shown beside the progress bar."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".work-") as scratch:
            try:
                self._predict(video, files, place, Path(scratch))
            except VideoError as error:
                files.add({"video": video.shown, "error": error.reason})

    def _predict(self, video: RequestedVideo, files: ResultFiles, place: str, scratch: Path) -> None:
        path = video.fetch(scratch, lambda done, total: self.step(f"{place}: download {video.stem}", done, total))
        self.step(f"{place}: decode {video.stem}", 0, None)
        subsampled = scratch / "subsampled.mp4"
        predictor, model = self.opened.predictor, self.opened.model
        prediction = predictor.predict(
            path,
            overlap=self.overlap,
            subsampled=subsampled,
            on_progress=lambda done, total: self.step(f"{place}: predict {video.stem}", done, total),
        )
        row: dict[str, Any] = {"video": video.shown, **describe(prediction, model), "heatmap": None, "error": None}
        box_T4 = find_boxes(prediction.models[model]) if self.box_file else None
        if self.heatmaps:
            row["heatmap"] = f"{self.names.take(video.stem)}.mp4"
            num_frames = prediction.video.num_frames
            draw_heatmap(
                subsampled,
                prediction,
                model,
                self.folder / row["heatmap"],
                self.opened.drawing,
                box_T4=box_T4,
                on_frame=lambda done: self.step(f"{place}: draw {video.stem}", done, num_frames),
            )
        files.add(row, prediction.models[model], prediction.fps)
        if self.box_file and box_T4 is not None:
            self.box_file.add(video.shown, box_T4, prediction.models[model], prediction.fps)


def _unused(folder: Path) -> Path:
    number = 2
    candidate = folder
    while candidate.exists():
        candidate = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return candidate


def _say_rows(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("video", "label", "confidence", "runner-up", "duration"):
        table.add_column(heading, justify="right" if heading in ("confidence", "duration") else "left", overflow="fold")
    for row in rows:
        name = escape(row["video"].rpartition("/")[2])
        if row["error"]:
            table.add_row(name, f"[red]{escape(row['error'])}[/red]")
            continue
        others = [entry for entry in row["top5"] if entry["label"] != row["label"]]
        following = f"{others[0]['label']} ({others[0]['probability']:.2f})" if others else ""
        table.add_row(name, escape(row["label"]), f"{row['confidence']:.2f}", escape(following), f"{row['seconds']:.1f} s")
    console.print(table)
